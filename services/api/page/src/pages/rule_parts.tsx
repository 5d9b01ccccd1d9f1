// The tables of a rule, and its definition.

import { useState } from 'preact/hooks'
import { rulePath, type Definition, type Deliveries as Answer, type RuleState, type Silence } from '../api/alerts'
import { getJson } from '../api/client'
import { outcomeText, signOf, tracesOf, valueOf, yamlOf } from '../core/alerts'
import { count, duration, plain, type Unit } from '../core/format'
import { address } from '../core/route'
import { useAnswer, useShared } from '../parts/app'
import { Curl, State } from '../parts/states'
import { When } from './alert_row'

/** How many instances are listed at first. */
const FEW = 20

export function Instances({ rule, unit, looked }: { rule: RuleState; unit: Unit; looked: number }) {
  const [isWhole, setWhole] = useState(false)
  const every = rule.instances ?? []
  const instances = isWhole ? every : every.slice(0, FEW)
  const all = rule.instance_count ?? every.length
  return (
    <section class="alerts-section" aria-labelledby="rule-instances">
      <h2 id="rule-instances">Instances</h2>
      <p class="dim">
        One for each {plain(rule.group_by ?? '')}: {count(rule.firing_instance_count ?? 0)} of {count(all)} fire
        {instances.length < all && `; the first ${count(instances.length)} are listed`}.
        {rule.overflow && ` ${count(rule.overflow.span_count)} spans belong to instances over the limit, which are not compared with the threshold.`}
      </p>
      {instances.length === 0 ? <p class="dim">No span in the window has a value yet.</p> : (
        <div class="scroll">
          <table class="rule-instances">
            <thead><tr><th scope="col">{plain(rule.group_by ?? '')}</th><th scope="col">state</th><th scope="col">value</th><th scope="col" class="number">spans</th><th scope="col">last fired</th><th scope="col">why not</th></tr></thead>
            <tbody>
              {instances.map((instance) => {
                const { sign, word, tone } = signOf({ ...rule, state: instance.state, silenced: false, firing: instance.state === 'firing' })
                return (
                  <tr key={instance.group}>
                    <th scope="row" class="alerts-name"><a href={address('traces', '', tracesOf(rule, instance.group, looked))}>{plain(instance.group) || '(none)'}</a></th>
                    <td class={`alerts-${tone}`}><span aria-hidden="true">{sign}</span> {word}</td>
                    <td>{valueOf(instance.current_value, rule, unit)}{instance.unpriced_span_count ? ` + ${count(instance.unpriced_span_count)} unpriced` : ''}</td>
                    <td class="number">{count(instance.span_count)}</td>
                    <td class="time">{instance.last_fired ? <When at={instance.last_fired} /> : <span class="dim">never</span>}</td>
                    <td class="dim">{plain(instance.why_not_fired ?? '').replace('_', ' ')}</td>
                  </tr>
                )
              })}
            </tbody>
          </table>
        </div>
      )}
      {every.length > instances.length && <button type="button" onClick={() => setWhole(true)}>show {count(every.length)}</button>}
    </section>
  )
}

export function PastSilences({ silences, path }: { silences: readonly Silence[]; path: string }) {
  return (
    <section class="alerts-section" aria-labelledby="rule-silences">
      <h2 id="rule-silences">Silences</h2>
      <div class="scroll" role="region" aria-label="silences" tabIndex={0}>
        <table class="rule-silences">
          <thead><tr><th scope="col">from</th><th scope="col">to</th><th scope="col">who</th><th scope="col">why</th></tr></thead>
          <tbody>
            {silences.map((silence) => (
              <tr key={silence.at}>
                <td class="time"><When at={silence.at} /></td><td class="time"><When at={silence.until} /></td>
                <td class="alerts-name">{plain(silence.by ?? '') || <span class="dim">not said</span>}</td>
                <td class="name">{plain(silence.comment ?? '') || <span class="dim">not said</span>}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <Curl path={path} />
    </section>
  )
}

export function Deliveries({ rule }: { rule: RuleState }) {
  const path = rulePath(rule.name, '/deliveries', [['limit', '10']])
  const answer = useAnswer(path, (options) => getJson<Answer>(path, options), { refresh: true })
  const deliveries = answer.data?.deliveries ?? []
  return (
    <section class="alerts-section" aria-labelledby="rule-deliveries">
      <h2 id="rule-deliveries">Attempts to deliver</h2>
      <State answer={answer} />
      {answer.data && deliveries.length === 0 && <p class="dim">Nothing was delivered yet.</p>}
      {deliveries.length > 0 && (
        <div class="scroll" role="region" aria-label="attempts to deliver" tabIndex={0}>
          <table class="rule-deliveries">
            <thead><tr><th scope="col" aria-sort="descending">at</th><th scope="col">event</th><th scope="col">attempt</th><th scope="col">outcome</th><th scope="col">to</th><th scope="col" class="number">took</th></tr></thead>
            <tbody>
              {deliveries.map((each) => {
                const { sign, tone } = outcomeText({ outcome: each.outcome, attempts: each.attempt })
                const group = Object.values(each.group)[0]
                return (
                  <tr key={`${each.at}/${each.fired_at}/${each.status}/${group}/${each.attempt}`}>
                    <td class="time"><When at={each.at} /></td>
                    <td>{each.status === 'firing' ? 'fired' : 'resolved'} <When at={each.fired_at} />{group !== undefined && ` for ${plain(group)}`}</td>
                    <td>{count(each.attempt)}</td>
                    <td class={`alerts-${tone}`}><span aria-hidden="true">{sign}</span> {each.outcome === 'retry' ? 'failed, tried again' : each.outcome}{each.error && `: ${plain(each.error)}`}</td>
                    <td class="alerts-where">{plain(each.channel)} {plain(each.destination)}</td>
                    <td class="number">{duration(each.took_ms)}</td>
                  </tr>
                )
              })}
            </tbody>
          </table>
        </div>
      )}
      {answer.data && answer.data.count > deliveries.length && <p class="dim">The newest {count(deliveries.length)} of {count(answer.data.count)} attempts that are kept.</p>}
      <Curl path={path} />
    </section>
  )
}

export function Written({ definition: { rule, hidden, source } }: { definition: Definition }) {
  const { say } = useShared()
  const [form, setForm] = useState<'yaml' | 'json'>('yaml')
  const text = form === 'yaml' ? yamlOf(rule) : JSON.stringify(rule, null, 2)
  const copy = () => {
    if (!navigator.clipboard) return say('The browser lets no page copy here; select the text.')
    void navigator.clipboard.writeText(text).then(() => say('Definition copied'), () => say('The browser refused to copy'))
  }
  return (
    <>
      <div class="bar">
        {(['yaml', 'json'] as const).map((each) => <button key={each} type="button" class="rule-form" aria-pressed={form === each} onClick={() => setForm(each)}>{each.toUpperCase()}</button>)}
        <button type="button" onClick={copy}>copy</button>
        {source === 'file' && <span class="dim">as it could stand in the configuration file</span>}
      </div>
      <pre class="rule-definition" tabIndex={0}>{plain(text, true)}</pre>
      {hidden.length > 0 && <p class="dim">Not shown: {hidden.map((key) => plain(key)).join(', ')}.</p>}
    </>
  )
}
