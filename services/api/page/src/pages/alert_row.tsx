// A rule in the list of rules, and the dialog that silences it.

import { useRef, useState } from 'preact/hooks'
import { rulePath, type RuleState } from '../api/alerts'
import { ApiError, send } from '../api/client'
import { conditionOf, deliverySign, left, signOf, SYMBOLS, unitOf, valueOf, whyOf } from '../core/alerts'
import { count, exactAmount, plain } from '../core/format'
import { address } from '../core/route'
import { ago, allAbout, shortInstant } from '../core/time'
import { logIn, useShared } from '../parts/app'
import { askRules } from '../parts/rules'
import { Sparkline } from '../parts/sparkline'

/** An instant in a table, to the second; hovering tells everything about it. */
export function When({ at, prefix = '' }: { at: string; prefix?: string }) {
  const { zone } = useShared()
  const [ms, now] = [Date.parse(at), Date.now()]
  return <time dateTime={at} title={allAbout(ms, now, zone)}>{prefix}{shortInstant(ms, now, zone).replace(/\.\d+$/, '')}</time>
}

export function StateSign({ rule }: { rule: RuleState }) {
  const { sign, word, tone } = signOf(rule)
  return <span class={`alerts-${tone}`}><span aria-hidden="true">{sign}</span> {word}</span>
}

export function Wakes({ rule }: { rule: RuleState }) {
  if (rule.delivery === null) return <span class="dim">no one (published only)</span>
  const last = rule.last_delivery
  const told = last && deliverySign(last)
  const where = rule.delivery === 'stdout' ? 'standard output of the alerter' : plain(rule.destination ?? '')
  return (
    <>
      <span class="alerts-where">{where}</span>
      {told && last && (
        <div class={`alerts-${told.tone}`} title={plain(last.error)}><span aria-hidden="true">{told.sign}</span> {told.word}, {ago(Date.parse(last.at), Date.now())}</div>
      )}
      {!told && <div class="dim">nothing delivered yet</div>}
    </>
  )
}

export function RuleRow({ rule }: { rule: RuleState }) {
  const { about } = useShared()
  const unit = unitOf(rule.metric, about?.metrics ?? [])
  const points = rule.recent_values.map((value, at) => ({ at, value, partial: false }))
  const unpriced = rule.unpriced_span_count ? ` + ${count(rule.unpriced_span_count)} unpriced` : ''
  return (
    <tr>
      <th scope="row" class="alerts-name">
        <a href={address('rule', rule.name)} title={conditionOf(rule, unit)}>{plain(rule.name) || '(no name)'}</a>
        {rule.source === 'file' && <span class="dim"> file</span>}
      </th>
      <td><StateSign rule={rule} /></td>
      <td>
        <div class="alerts-value" title={`${plain(rule.metric)}: ${exactAmount(rule.current_value, unit)}`}>
          <span>{valueOf(rule.current_value, rule, unit)}{unpriced} <span class="dim">{rule.breached ? '' : 'fires if '}{SYMBOLS[rule.op]} {valueOf(rule.threshold, rule, unit)}</span></span>
          {rule.recent_values.some((value) => value !== null) && (
            <Sparkline points={points} most={Math.max(rule.threshold, 0)} name={`the last ${rule.recent_values.length} values, ${rule.eval_interval} apart`} />
          )}
        </div>
      </td>
      <td class="time"><Since rule={rule} /></td>
      <td title={rule.group_by ? `one instance for each ${plain(rule.group_by)}` : 'the rule has no groups'}>
        {rule.instance_count === undefined ? '–' : `${count(rule.firing_instance_count ?? 0)} of ${count(rule.instance_count)} fire`}
      </td>
      <td><Wakes rule={rule} /></td>
      <td class="time">
        {rule.next_evaluation ? <When at={rule.next_evaluation} /> : '–'}
        {rule.state !== 'firing' && rule.why_not_fired && <div class="dim alerts-why" title={whyOf(rule, unit)}>{plain(rule.why_not_fired).replace('_', ' ')}</div>}
      </td>
      <td><SilenceButton rule={rule} /></td>
    </tr>
  )
}

function Since({ rule }: { rule: RuleState }) {
  if (rule.silenced && rule.silenced_until) {
    return (
      <>
        {rule.silenced_at && <When at={rule.silenced_at} />}
        <div class="dim">{left(rule.silenced_until, Date.now())} left{rule.silenced_by && `, by ${plain(rule.silenced_by)}`}</div>
      </>
    )
  }
  if (rule.starts_at) return <When at={rule.starts_at} />
  return rule.last_fired ? <span class="dim"><When at={rule.last_fired} prefix="last fired " /></span> : <span class="dim">never fired</span>
}

/** Silences a rule, or lifts its silence. */
export function SilenceButton({ rule, done = askRules }: { rule: RuleState; done?: () => void }) {
  const { say } = useShared()
  const dialog = useRef<HTMLDialogElement>(null)
  const [problem, setProblem] = useState('')
  const name = plain(rule.name)
  const lift = async () => {
    try {
      await send('DELETE', rulePath(rule.name, '/silence'))
      setProblem('')
      say(`The silence of ${name} is lifted`)
      done()
    } catch (error) {
      setProblem(messageOf(error))
    }
  }
  if (rule.silenced && !rule.silenced_until) return <span class="dim" title="The rule has the key silenced.">silenced by its definition</span>
  return (
    <>
      {rule.silenced
        ? <button type="button" aria-label={`lift the silence of ${name}`} onClick={() => void lift()}>lift</button>
        : <button type="button" aria-haspopup="dialog" aria-label={`silence ${name}`} onClick={() => dialog.current?.showModal()}>silence…</button>}
      {problem && <p class="note error" role="alert">{plain(problem)}</p>}
      <dialog ref={dialog} aria-label={`Silence ${name}`} class="alerts-dialog">
        <SilenceForm rule={rule} close={() => dialog.current?.close()} done={() => { say(`${name} is silenced`); done() }} />
      </dialog>
    </>
  )
}

/** The text of an error of the API; any other error is thrown. */
export function messageOf(error: unknown): string {
  if (!(error instanceof ApiError)) throw error
  if (error.status === 401) logIn()
  return error.message
}

const DURATIONS = ['30m', '1h', '2h', '8h', '1d', '7d']

function SilenceForm({ rule, close, done }: { rule: RuleState; close: () => void; done: () => void }) {
  const [texts, setTexts] = useState({ duration: '1h', by: '', comment: '' })
  const [problem, setProblem] = useState('')
  const enter = async (event: Event) => {
    event.preventDefault()
    try {
      await send('POST', rulePath(rule.name, '/silence'), texts)
    } catch (error) {
      return setProblem(messageOf(error))
    }
    setProblem('')
    close()
    done()
  }
  const field = (key: 'duration' | 'by' | 'comment', label: string, hint: string) => (
    <label>
      {label} <span class="dim">{hint}</span>
      <input name={key} value={texts[key]} list={key === 'duration' ? `durations-${rule.name}` : undefined} autocomplete="off"
        aria-invalid={problem.startsWith(`${key}:`)} onInput={(event) => setTexts({ ...texts, [key]: event.currentTarget.value })} />
      {problem.startsWith(`${key}:`) && <span class="alerts-error" role="alert">{plain(problem)}</span>}
    </label>
  )
  return (
    <form class="alerts-form" onSubmit={(event) => void enter(event)}>
      <h2>Silence {plain(rule.name)}</h2>
      <p class="dim">The rule is still evaluated, but publishes and delivers nothing.</p>
      {field('duration', 'for how long', 'such as 90s, 2h30m or 7d')}
      <datalist id={`durations-${rule.name}`}>{DURATIONS.map((text) => <option key={text} value={text} />)}</datalist>
      {field('by', 'who', 'your name, for those who find the silence')}
      {field('comment', 'why', 'such as a ticket')}
      {problem && !/^(duration|by|comment):/.test(problem) && <p class="note error" role="alert">{plain(problem)}</p>}
      <div class="bar"><button type="submit">silence</button><button type="button" onClick={close}>cancel</button></div>
    </form>
  )
}
