// One number: over time, as a distribution, and by any dimension or attribute.

import { useState } from 'preact/hooks'
import { getJson } from '../api/client'
import { metricParams, type HistogramAnswer, type NumberAnswer, type Series } from '../api/metrics'
import { filtersOf, METRIC_FILTERS } from '../core/filter'
import { amount, exactAmount, plain, quantileError, type Unit } from '../core/format'
import { address, type Route } from '../core/route'
import { aligned, hasStatistics, itself, linesOf, only, shiftOf, shownPoints, STATISTICS, stepOf, told, type Better } from '../core/shape'
import { metricName } from '../core/metric_names'
import { between, type Range } from '../core/time'
import { go, useAnswer, useKeys, useShared, useTitle, zoomTo } from '../parts/app'
import { Chart } from '../parts/chart'
import { Histogram } from '../parts/histogram'
import { mapped, Panel, useAsked, type Asked } from '../parts/panel'
import { carried, NumbersBar } from '../parts/numbers_bar'
import { rangeIn } from '../parts/range'
import { Note } from '../parts/states'
import { bounds, Dimension, dimensionOf } from './overview_charts'
import { GroupTable } from './metric_table'
import './metric.css'

export type About = { name: string; unit: Unit; additive: boolean; better: Better }
/** Metric -> the distribution that it is a number of. */
const FIELDS: readonly (readonly [RegExp, string])[] = [
  [/^latency_/, 'latency'], [/^ttft_/, 'ttft'], [/^(total_cost|cost_per_call)$/, 'cost'], [/^quality_/, 'quality'],
  [/^prompt_token/, 'prompt_tokens'], [/^completion_token/, 'completion_tokens'], [/^total_tokens$/, 'tokens'],
]
/** Metrics that are counted over all time, so that they have no series and no groups. */
const WITHOUT_SERIES = /^(transport_|alert_|rejected_)/

export function MetricPage({ route }: { route: Route }) {
  const { about } = useShared()
  const name = route.id
  const { title, meaning } = metricName(name)
  const heading = useTitle(plain(title), `metric ${name}`)
  const range = rangeIn(route)
  const known = about?.metrics ?? []
  const metric: About = known.find((each) => each.name === name) ?? { name, unit: 'any', additive: false, better: 'neither' }
  const evals = useEvals()
  const choices = [...known.filter((each) => !WITHOUT_SERIES.test(each.name)).map((each) => each.name), ...evals.names]
  return (
    <>
      <h1 ref={heading} tabIndex={-1}>{plain(title)}</h1>
      {meaning && <p class="dim metric-meaning">{plain(meaning)}</p>}
      <div class="bar">
        <label class="dim" for="metric">metric</label>
        <select id="metric" value={name} onFocus={evals.ask} onPointerDown={evals.ask} onChange={(event) => go(address('metric', event.currentTarget.value, route.params.without('order')))}>
          {(choices.includes(name) ? choices : [name, ...choices]).map((each) => <option key={each} value={each}>{plain(metricName(each).title)}</option>)}
        </select>
        {hasStatistics(name) && (
          <select aria-label="statistic" value={statisticOf(route)} onChange={(event) => go(address('metric', name, route.params.with({ statistic: event.currentTarget.value })))}>
            {STATISTICS.map((each) => <option key={each}>{each}</option>)}
          </select>
        )}
        <Dimension route={route} id="dimension" />
        <a href={ruleAddress(route, name)}>Make a rule of this</a>
        <a href={address('traces', '', carried(route))}>Traces of this range</a>
      </div>
      <NumbersBar route={route} />
      {typeof range === 'string' ? <Note kind="error" text={plain(range)} /> : <Panels key={`${name} ${dimensionOf(route)} ${statisticOf(route)}`} route={route} range={range} metric={metric} />}
    </>
  )
}

/** The names of the evals as metrics, asked for when the list of metrics is opened. */
function useEvals(): { names: readonly string[]; ask: () => void } {
  const metrics = useShared().about?.paths.metrics ?? '/metrics'
  const [isOpen, open] = useState(false)
  const answer = useAnswer<{ evals: { metric: string }[] }>(isOpen ? 'evals' : null, (options) => getJson(`.${metrics}/evals?window=30d`, options))
  return { names: answer.data?.evals.map((each) => each.metric) ?? [], ask: () => open(true) }
}

function statisticOf(route: Route): string {
  return route.params.get('statistic') ?? STATISTICS[0]
}

/** The form of a new rule on this number, with the groups and filters that are shown. */
export function ruleAddress(route: Route, name: string): string {
  const filters = filtersOf(route.params, METRIC_FILTERS)
  return address('alerts', '', [['new', '1'], ['metric', name], ...(route.params.has('groupby') ? [['groupby', dimensionOf(route)] as const] : []), ...filters])
}

function Panels({ route, range, metric }: { route: Route; range: Range; metric: About }) {
  const key = dimensionOf(route)
  const order = route.params.get('order') ?? 'value'
  const path = `/metrics/${encodeURIComponent(metric.name)}`
  const statistic = statisticOf(route)
  // A statistic of an attribute is shown like any number.
  const shown = <T,>(asked: Asked<T>): Asked<T> => (hasStatistics(metric.name) ? mapped(asked, (data) => only(data, statistic) as T) : asked)
  const groups = shown(useAsked<NumberAnswer>(path, metricParams(range, route.params, { groupby: key, top: '50', order, compare: 'before' })))
  const series = shown(useAsked<Series>(`${path}/series`, metricParams(range, route.params, { groupby: key, top: '12', order, compare: 'before' })))
  useKeys('page', (action) => action === 'refresh' && (groups.answer.reload(), series.answer.reload(), true))
  const field = FIELDS.find(([pattern]) => pattern.test(metric.name))?.[1]
  return (
    <>
      <Summary asked={groups} metric={metric} />
      <div class="panels">
        <Large asked={series} route={route} metric={metric} />
        <Panel title={`By ${plain(key)}`} asked={groups} also={[]}>
          {(data) => <GroupTable data={data} series={series.answer.data} name={key} metric={metric} route={route} order={order} />}
        </Panel>
        {field && <Distribution route={route} range={range} field={field} />}
      </div>
    </>
  )
}

/** The number itself against the range before. */
function Summary({ asked, metric: { unit, better } }: { asked: Asked<NumberAnswer>; metric: About }) {
  const { zone } = useShared()
  const { data } = asked.answer
  if (!data) return null
  const { text, mood } = told(data.change?.value, unit, better)
  const { previous } = data
  return (
    <p class="metric-value">
      <strong title={exactAmount(data.value, unit)}>{amount(data.value, unit)}</strong>
      {data.quantile_error ? <span class="dim"> {quantileError(data.quantile_error)}</span> : null}
      {data.unpriced_span_count ? <span class="card-warning"> + {data.unpriced_span_count} unpriced</span> : null}{' '}
      <span class={mood}>{text}</span>
      {previous && <span class="dim">; before, {between(Date.parse(previous.from), Date.parse(previous.to), Date.parse(data.to), zone)}: {amount(previous.value, unit)}</span>}
    </p>
  )
}

function Large({ asked, route, metric }: { asked: Asked<Series>; route: Route; metric: About }) {
  const key = dimensionOf(route)
  const isGrouped = route.params.get('lines') === 'groups'
  const hasPrevious = route.params.get('previous') !== '0'
  const set = (name: string, value: string | null) => go(address('metric', metric.name, route.params.with({ [name]: value })))
  return (
    <section class="metric-large">
      <Panel title="Over time" asked={asked} actions={
        <>
          <button type="button" aria-pressed={isGrouped} onClick={() => set('lines', isGrouped ? null : 'groups')}>by {plain(key)}</button>
          {!isGrouped && <button type="button" aria-pressed={hasPrevious} onClick={() => set('previous', hasPrevious ? '0' : null)}>the range before</button>}
        </>
      }>
        {(data) => {
          const title = plain(metricName(metric.name).title)
          const together = { name: title, points: shownPoints(data.points, itself) }
          const { previous } = data
          const earlier = previous && hasPrevious ? aligned(together.points, shownPoints(previous.points, itself, shiftOf(data, previous)), stepOf(data)) : null
          const before = earlier ? [{ name: 'before', points: earlier }] : []
          return (
            <Chart title={isGrouped ? `${title} by ${plain(key)}` : title} unit={metric.unit} height={300} step={stepOf(data)} range={bounds(data)}
              stacked={isGrouped && metric.additive} series={isGrouped ? linesOf(data) : [together, ...before]}
              colours={isGrouped ? {} : { [title]: 'var(--llm)', before: 'var(--other)' }}
              {...(isGrouped && metric.additive ? { total: together.points } : {})} onBrush={(from, to) => zoomTo(route, from, to)} />
          )
        }}
      </Panel>
    </section>
  )
}

const UNITS: Record<string, Unit> = { ms: 'milliseconds', usd: 'usd', tokens: 'tokens', score: 'score' }

function Distribution({ route, range, field }: { route: Route; range: Range; field: string }) {
  const asked = useAsked<HistogramAnswer>(`/metrics/${field}/histogram`, metricParams(range, route.params, { compare: 'before' }))
  return (
    <Panel title="Distribution" asked={asked}>
      {(data) => (
        <Histogram title={`Distribution of ${field.replace('_', ' ')}`} unit={UNITS[data.unit] ?? 'any'} edges={data.edges} counts={data.counts} zero={data.zero} count={data.count}
          {...(data.previous ? { before: data.previous } : {})}
          lines={[{ name: 'p50', value: data.p50 }, { name: 'p95', value: data.p95 }, { name: 'p99', value: data.p99 }]} />
      )}
    </Panel>
  )
}
