// One rule: what it measured, when it fired, who was told, and why it does not fire now.

import { useRef, useState } from 'preact/hooks'
import './alerts.css'
import { rulePath, type Definition, type EventPage, type RuleSeries, type RuleState, type Silences } from '../api/alerts'
import { ApiError, getJson, query, send } from '../api/client'
import { conditionOf, draftOf, outcomeText, SYMBOLS, tracesOf, unitOf, valueOf, whyOf } from '../core/alerts'
import { count, exactAmount, plain, type Unit } from '../core/format'
import type { Pair } from '../core/params'
import { address, type Route } from '../core/route'
import { go, useAnswer, useKeys, useShared, useTitle, zoomTo, type Answer } from '../parts/app'
import type { Mark } from '../parts/chart'
import { rangeIn } from '../parts/range'
import { askRules } from '../parts/rules'
import { Curl, Note, State } from '../parts/states'
import { RuleForm } from './alert_form'
import { History, HISTORY_PARAMS } from './alert_history'
import { markOf, SeriesChart, SlowReplay } from './alert_preview'
import { messageOf, SilenceButton, StateSign, Wakes, When } from './alert_row'
import { NotUnderstood } from './alerts'
import { Deliveries, Instances, PastSilences, Written } from './rule_parts'

export function RulePage({ route }: { route: Route }) {
  const name = route.id
  const heading = useTitle(plain(name), name)
  const status = useAnswer(`status/${name}`, (options) => getJson<RuleState>(rulePath(name, '/status'), options), { refresh: true })
  const definition = useAnswer(`definition/${name}`, (options) => getJson<Definition>(rulePath(name, '/definition'), options))
  const isEdited = route.params.get('edit') === '1'
  const changed = () => {
    askRules()
    status.reload()
    definition.reload()
  }
  const rule = status.data
  return (
    <>
      <p><a href={address('alerts')}>‹ alerts</a></p>
      <h1 ref={heading} tabIndex={-1}>{plain(name)}</h1>
      <NotUnderstood route={route} known={(each) => [...HISTORY_PARAMS, 'edit', 'window', 'from', 'to'].includes(each)} />
      <State answer={status} />
      {status.error?.status === 404 && <p>It may have been deleted. What it did is in the <a href={address('alerts', '', [['rule', name]])}>history</a>.</p>}
      {rule && isEdited && definition.data && definition.data.source === 'created' && (
        <RuleForm draft={draftOf(definition.data.rule)} name={name} hidden={definition.data.hidden}
          saved={() => { changed(); go(address('rule', name)) }} cancel={() => go(address('rule', name, route.params.without('edit')))} />
      )}
      {rule && !(isEdited && definition.data?.source === 'created') && <Shown rule={rule} route={route} definition={definition} changed={changed} />}
    </>
  )
}

function Shown({ rule, route, definition, changed }: { rule: RuleState; route: Route; definition: Answer<Definition>; changed: () => void }) {
  const { about } = useShared()
  const unit = unitOf(rule.metric, about?.metrics ?? [])
  const silences = useAnswer(`silences/${rule.name}/${rule.silenced_at}/${rule.silence_ended}`, (options) => getJson<Silences>(rulePath(rule.name, '/silences'), options))
  const looked = rule.last_evaluated ? Date.parse(rule.last_evaluated) : Date.now()
  const isMetric = about?.metrics.some((metric) => metric.name === rule.metric)
  const filters = tracesOf(rule, null, looked).filter(([key]) => key !== 'from' && key !== 'to')
  const metricParams: Pair[] = [...filters, ...(rule.group_by ? [['groupby', rule.group_by] as const] : [])]
  const unpriced = rule.unpriced_span_count ? ` + ${count(rule.unpriced_span_count)} unpriced` : ''
  return (
    <>
      <p class="rule-condition">Fires if {conditionOf(rule, unit)}.</p>
      <div class="bar">
        {rule.source === 'created' && <a href={address('rule', rule.name, route.params.with({ edit: '1' }))}>edit</a>}
        <SilenceButton rule={rule} done={changed} />
        <DeleteButton rule={rule} />
        <a href={address('traces', '', tracesOf(rule, null, looked))}>traces of its window</a>
        {isMetric && <a href={address('metric', rule.metric, metricParams)}>metric</a>}
      </div>
      {rule.source === 'file' && <p class="dim">The configuration file has this rule: change it there. It can be silenced here.</p>}
      {rule.hides_rule_of_file && <Note text="The configuration file has a rule of this name too. It is not evaluated while this one exists." />}
      {rule.misses_late_scores && <Note text="The rule selects or groups spans by a score, and counts the score that a span arrived with: later ones are ignored." />}
      <dl class="rule-facts">
        <dt>state</dt><dd><StateSign rule={rule} />{rule.starts_at && <> since <When at={rule.starts_at} /></>}</dd>
        <dt>why</dt><dd class="rule-why">{rule.state === 'firing' && !rule.silenced ? firesText(rule, unit) : whyOf(rule, unit)}</dd>
        <dt>value</dt>
        <dd title={exactAmount(rule.current_value, unit)}>
          {valueOf(rule.current_value, rule, unit)}{unpriced} <span class="dim">{SYMBOLS[rule.op]} {valueOf(rule.threshold, rule, unit)}, from {count(rule.span_count)} spans</span>
        </dd>
        {rule.silenced && rule.silenced_until && (
          <>
            <dt>silence</dt>
            <dd>
              until <When at={rule.silenced_until} />{rule.silenced_by && `, by ${plain(rule.silenced_by)}`}{rule.silence_comment && `: ${plain(rule.silence_comment)}`}.
              It has held back {count(rule.held_back)} {rule.held_back === 1 ? 'firing' : 'firings'}.
            </dd>
          </>
        )}
        {!rule.silenced && rule.silence_ended && (
          <><dt>last silence</dt><dd>ended <When at={rule.silence_ended} />; it held back {count(rule.held_back)} {rule.held_back === 1 ? 'firing' : 'firings'}</dd></>
        )}
        <dt>wakes</dt><dd><Wakes rule={rule} /></dd>
        <dt>looks</dt><dd>every {rule.eval_interval}{rule.next_evaluation && <>, next at <When at={rule.next_evaluation} /></>}</dd>
        <dt>spans</dt><dd>{count(rule.spans_considered)} matched the filter so far{rule.late_spans > 0 && `; ${count(rule.late_spans)} came too late to be counted`}</dd>
      </dl>
      <Curl path={rulePath(rule.name, '/status')} />
      <Past rule={rule} route={route} silences={silences.data} />
      {rule.group_by && <Instances rule={rule} unit={unit} looked={looked} />}
      {silences.data && silences.data.count > 0 && <PastSilences silences={silences.data.silences} path={rulePath(rule.name, '/silences')} />}
      <History route={route} names={[]} only={rule.name} />
      {rule.delivery !== null && <Deliveries rule={rule} />}
      <section class="alerts-section" aria-labelledby="rule-definition">
        <h2 id="rule-definition">Definition</h2>
        <State answer={definition} />
        {definition.data && <Written definition={definition.data} />}
        <Curl path={rulePath(rule.name, '/definition')} />
      </section>
    </>
  )
}

/** Why a rule fires: one instance does, if it has groups. */
function firesText(rule: RuleState, unit: Unit): string {
  const value = `${valueOf(rule.current_value, rule, unit)} ${SYMBOLS[rule.op]} ${valueOf(rule.threshold, rule, unit)}`
  if (rule.group_by) return `It fires for ${count(rule.firing_instance_count ?? 0)} of ${count(rule.instance_count ?? 0)} instances.`
  return rule.breached ? `It fires: ${value}.` : `It still fires. ${whyOf(rule, unit)}`
}

/** Least time between two replays of the log, milliseconds, and how many times as long as a replay takes. */
const [LEAST_MS, TIMES] = [30_000, 20]

/** The value of the rule over the chosen time, with its firings and silences. */
function Past({ rule, route, silences }: { rule: RuleState; route: Route; silences: Silences | null }) {
  const { about } = useShared()
  const unit = unitOf(rule.metric, about?.metrics ?? [])
  const range = rangeIn(route)
  const wrong = typeof range === 'string' ? range : range.kind === 'all' ? 'range: choose one' : ''
  const params: Pair[] = typeof range === 'string' || range.kind === 'all' ? []
    : range.kind === 'fixed' ? [['from', range.from], ['to', range.to]] : [['window', range.window]]
  // Each series is made from the log again, so it is asked for less often the longer that takes.
  const last = useRef<{ key: string; at: number; took: number; data: RuleSeries } | null>(null)
  const path = rulePath(rule.name, '/series', params)
  const key = `${path} ${rule.threshold}`
  const running = useRef<{ key: string; found: Promise<RuleSeries> } | null>(null)
  const series = useAnswer(wrong ? null : key, ({ waiting }) => {
    const before = last.current
    if (before && before.key === key && Date.now() - before.at < Math.max(LEAST_MS, TIMES * before.took)) return Promise.resolve(before.data)
    // A replay may last longer than the time between two refreshes. To end the request would not end the replay.
    if (running.current?.key === key) return running.current.found
    const began = Date.now()
    const found = getJson<RuleSeries>(path, waiting ? { waiting } : {}).then((data) => {
      last.current = { key, at: Date.now(), took: Date.now() - began, data }
      return data
    }).finally(() => {
      if (running.current?.found === found) running.current = null
    })
    running.current = { key, found }
    return found
  }, { refresh: true })
  const from = series.data?.from
  const eventsPath = `./alerts/events${query([['rule', rule.name], ...(from ? [['since', from] as const] : []), ...(range && typeof range !== 'string' && range.kind === 'fixed' ? [['until', range.to] as const] : []), ['limit', '200']])}`
  const events = useAnswer(from ? `${eventsPath}` : null, (options) => getJson<EventPage>(eventsPath, options), { refresh: true })
  useKeys('page', (action) => {
    if (action !== 'refresh') return false
    last.current = null
    series.reload()
    return true
  })
  const marks: Mark[] = [
    ...(events.data?.events ?? []).map((event) => markOf(event, unit, rule.change, outcomeText(event.delivery).word)),
    ...(silences?.silences ?? []).flatMap((silence): Mark[] => [
      { at: Date.parse(silence.at), name: `silenced${silence.by ? ` by ${plain(silence.by)}` : ''}${silence.comment ? `: ${plain(silence.comment)}` : ''}` },
      { at: Date.parse(silence.until), name: 'the silence ends' },
    ]),
  ]
  return (
    <section class="alerts-section" aria-labelledby="rule-past">
      <h2 id="rule-past">Value over time</h2>
      {wrong ? <Note kind="error" text={plain(wrong)} /> : <State answer={series} />}
      <SlowReplay isAsking={series.loading && !wrong} />
      {series.data && !wrong && (
        <div class={series.loading ? 'stale' : ''}>
          <SeriesChart series={series.data} unit={unit} change={rule.change} marks={marks} lasts={rule.for === '0s' ? '' : rule.for}
            title={`${plain(rule.metric)} as ${plain(rule.name)} measures it`} onBrush={(begin, end) => zoomTo(route, begin, end)} />
          <p class="dim">
            {rule.group_by ? `The instance furthest ${rule.op === 'gt' || rule.op === 'gte' ? 'up' : 'down'} at each instant. ` : ''}
            Made from the log again, without silences. {events.data?.next_cursor && 'Only the last 200 events are marked. '}
            <a href={address('traces', '', [...tracesOf(rule, null, 0).filter(([each]) => each !== 'from' && each !== 'to'), ['from', series.data.from], ['to', series.data.to]])}>traces of this time</a>
          </p>
          <Curl path={path} />
        </div>
      )}
    </section>
  )
}

function DeleteButton({ rule }: { rule: RuleState }) {
  const { say } = useShared()
  const dialog = useRef<HTMLDialogElement>(null)
  const [problem, setProblem] = useState('')
  const name = plain(rule.name)
  const remove = async () => {
    try {
      // As a parameter, because a path cannot hold every name.
      await send('DELETE', `./alerts${query([['name', rule.name]])}`)
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      return setProblem(messageOf(error))
    }
    dialog.current?.close()
    say(`Rule ${name} deleted`)
    askRules()
    go(address('alerts'))
  }
  return (
    <>
      <button type="button" aria-haspopup="dialog" onClick={() => dialog.current?.showModal()}>delete…</button>
      <dialog ref={dialog} aria-label={`Delete ${name}`} class="alerts-dialog">
        <h2>Delete the rule {name}?</h2>
        <p>{rule.firing ? 'It fires: its episode ends with a resolved event. ' : ''}{fateOf(rule)} What it did stays in the history for 30 days.</p>
        {problem && <p class="note error" role="alert">{plain(problem)}</p>}
        <div class="bar">
          <button type="button" onClick={() => void remove()}>delete {name}</button>
          <button type="button" autofocus onClick={() => dialog.current?.close()}>keep it</button>
        </div>
      </dialog>
    </>
  )
}

/** What becomes of a rule that is deleted. */
function fateOf(rule: RuleState): string {
  if (rule.source === 'file') return 'The configuration file has it, so it comes back when an alerter starts again. To delete it for good, remove it there.'
  if (rule.hides_rule_of_file) return 'The configuration file has another rule of this name, which is evaluated after the next start of an alerter.'
  return 'It was made at run time, so it does not come back.'
}
