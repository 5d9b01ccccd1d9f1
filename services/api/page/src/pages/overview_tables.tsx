// The tables of the Overview: what changed, the dearest and the slowest traces, and the rules that fire now.

import type { RuleState } from '../api/alerts'
import { metricParams, type NumberAnswer } from '../api/metrics'
import type { CallsPage } from '../api/types'
import { SYMBOLS } from '../core/alerts'
import { filtersOf, within } from '../core/filter'
import { amount, count, duration, exactAmount, plain, type Unit } from '../core/format'
import type { Params } from '../core/params'
import { address, type Route } from '../core/route'
import { metricName } from '../core/metric_names'
import { groupAmount, groupedBy, groupsOf, told, unpricedOf } from '../core/shape'
import { ago, allAbout, shortInstant, type Range } from '../core/time'
import { go, useShared } from '../parts/app'
import { styled } from '../parts/chart_over'
import { carried, passed } from '../parts/numbers_bar'
import { Panel, useAsked, type Asked } from '../parts/panel'
import { mark } from '../parts/status'
import { callAddress, costOf } from './calls'
import { Dimension, dimensionOf } from './overview_charts'

/** What "What changed" can be about: metric -> its name there. */
const MEASURES: Record<string, string> = { total_cost: 'cost', latency_p95: 'p95 latency', error_rate: 'error rate', span_count: 'calls' }

export function Changed({ route, range }: { route: Route; range: Range }) {
  const { about } = useShared()
  const key = dimensionOf(route)
  const chosen = route.params.get('measure') ?? 'total_cost'
  const asked = useAsked<NumberAnswer>(
    `/metrics/${encodeURIComponent(chosen)}`, metricParams(range, route.params, { groupby: key, compare: 'before', top: '10', order: 'change' }),
  )
  const known = (name: string) => about?.metrics.find((each) => each.name === name)
  return (
    <Panel title="What changed" asked={asked} actions={
      <>
        <select aria-label="what is compared" value={chosen} onChange={(event) => go(address('overview', '', route.params.with({ measure: event.currentTarget.value })))}>
          {Object.entries({ ...(chosen in MEASURES ? {} : { [chosen]: chosen }), ...MEASURES }).map(([name, text]) => <option key={name} value={name}>{plain(text)}</option>)}
        </select>
        <Dimension route={route} id="changed-by" />
        <a href={address('compare', '', carried(route))}>Compare</a>
      </>
    }>
      {(data) => (
        <Movers data={data} name={groupedBy(data, key)} unit={known(data.metric)?.unit ?? 'any'} better={known(data.metric)?.better ?? 'neither'}
          route={route} metric={data.metric} />
      )}
    </Panel>
  )
}

function Movers({ data, name, unit, better, route, metric }: {
  data: NumberAnswer; name: string; unit: Unit; better: 'lower' | 'higher' | 'neither'; route: Route; metric: string
}) {
  const values = data.order ?? []
  const changes = groupsOf(data.change)
  const most = Math.max(0, ...values.map((value) => Math.abs(changes[value]?.absolute ?? 0)))
  if (!values.length) return <p class="dim">no data in this range and in the one before</p>
  return (
    <div class="scroll">
      <table class="overview-changes">
        <thead><tr><th scope="col">{plain(name)}</th><th scope="col" class="number">before</th><th scope="col" class="number">now</th><th scope="col" aria-sort="descending">change</th></tr></thead>
        <tbody>
          {values.map((value) => {
            const [now, before] = [groupsOf(data)[value], groupsOf(data.previous)[value]]
            const { text, mood } = told(changes[value], unit, better)
            const width = most ? (Math.abs(changes[value]?.absolute ?? 0) / most) * 60 : 0
            return (
              <tr key={value}>
                <td class="name"><a href={address('metric', metric, passed(route).with({ [name]: value, groupby: name === 'model' ? 'caller' : 'model' }))}>{plain(value) || '(none)'}</a></td>
                <td class="number" title={exactAmount(before, unit)}>{groupAmount(before, unit, unpricedOf(data.previous, value))}</td>
                <td class="number" title={exactAmount(now, unit)}>{groupAmount(now, unit, unpricedOf(data, value))}</td>
                <td class={mood}>{text}{width > 0 && <i class={`overview-bar ${mood}`} ref={styled({ width: `${width}px` })} />}</td>
              </tr>
            )
          })}
        </tbody>
      </table>
    </div>
  )
}

export function MostOf({ route, range, order }: { route: Route; range: Range; order: 'cost' | 'latency' }) {
  const { zone } = useShared()
  const now = Date.now()
  const params = mostOf(route, order)
  const asked = useAsked<CallsPage>('/calls', [['order', order], ['limit', '5'], ...within(range), ...filtersOf(params)])
  return (
    <Panel title={order === 'cost' ? 'Most expensive calls' : 'Slowest calls'} asked={asked} actions={
      <>
        <a href={address('calls', '', params)}>all calls</a>
        <a href={address('traces', '', carried(route).with({ order: order === 'cost' ? order : 'duration' }))}>whole traces</a>
      </>
    }>
      {(data) => data.count === 0 ? <p class="dim">no call in this range</p> : (
        <div class="scroll">
          <table>
            <thead><tr><th scope="col">started</th><th scope="col">name</th><th scope="col" class="number" aria-sort={order === 'latency' ? 'descending' : undefined}>latency</th>
              <th scope="col" class="number" aria-sort={order === 'cost' ? 'descending' : undefined}>cost</th></tr></thead>
            <tbody>
              {data.calls.map((call) => {
                const started = Date.parse(call.started_at)
                return (
                  <tr key={`${call.trace_id}/${call.span_id}`}>
                    <td class="time" title={allAbout(started, now, zone)}>{shortInstant(started, now, zone).slice(0, -4)}</td>
                    <td class="name"><span class={`status-${call.status}`}>{mark(call.status)}</span>
                      <a href={callAddress(call, carried(route))}>{plain(call.name) || '(no name)'}</a>{call.model && <span class="dim"> {plain(call.model)}</span>}</td>
                    <td class="number">{duration(call.latency_ms)}</td>
                    <td class="number" title={exactAmount(call.cost_usd, 'usd')}>{costOf(call)}</td>
                  </tr>
                )
              })}
            </tbody>
          </table>
        </div>
      )}
    </Panel>
  )
}

/** The list of the dearest or slowest calls. What is slow is a model call, as in the latency above, unless another kind is chosen. */
export function mostOf(route: Route, order: 'cost' | 'latency'): Params {
  const isAny = order === 'cost' || route.params.has('kind')
  return carried(route).with({ order, ...(isAny ? {} : { kind: 'llm' }) })
}

/** Where the message of a firing rule goes. */
function wakes(rule: RuleState): string {
  if (rule.silenced) return 'silenced: no message is sent'
  return rule.delivery ? `sent to ${plain(rule.destination ?? rule.delivery)}` : 'no delivery: published on NATS only'
}

export function Firing({ route, asked, events }: { route: Route; asked: Asked<RuleState[]>; events: Asked<unknown> }) {
  const { about } = useShared()
  const unitOf = (name: string): Unit => about?.metrics.find((metric) => metric.name === name)?.unit ?? 'any'
  return (
    <Panel title={<a href={address('alerts')}>Firing now</a>} asked={asked} also={[events]}>
      {(rules) => {
        const firing = rules.filter((rule) => rule.firing)
        if (!rules.length) return <p>There is no rule yet, so no alert is sent. <a href={address('alerts', '', [['new', '1'], ...carried(route)])}>Make a rule</a></p>
        if (!firing.length) return <p class="good">No rule is firing. {rules.length === 1 ? '1 rule is' : `${rules.length} rules are`} watched.</p>
        return (
          <ul class="overview-firing">
            {firing.map((rule) => (
              <li key={rule.name}>
                <span class="bad">●</span> <a href={address('rule', rule.name)}>{plain(rule.name)}</a> <span class="dim">{plain(rule.level)}</span>{' '}
                {plain(metricName(rule.metric).title)} {rule.worst_group !== undefined && <>of {plain(rule.group_by ?? '')} {plain(rule.worst_group) || '(none)'} </>}
                {amount(rule.current_value, unitOf(rule.metric))} {SYMBOLS[rule.op]} {amount(rule.threshold, unitOf(rule.metric))}
                {rule.starts_at && <span class="dim">, began {ago(Date.parse(rule.starts_at), Date.now())}</span>}
                {rule.instance_count !== undefined && <>; {count(rule.firing_instance_count ?? 0)} of {count(rule.instance_count)} fire, one for each {plain(rule.group_by ?? '')}</>}
                <span class="dim">, {wakes(rule)}</span>
                {rule.last_delivery?.outcome === 'dead' && <span class="bad"> ✕ not delivered after {count(rule.last_delivery.attempts)} attempts: {plain(rule.last_delivery.error)}</span>}
              </li>
            ))}
          </ul>
        )
      }}
    </Panel>
  )
}
