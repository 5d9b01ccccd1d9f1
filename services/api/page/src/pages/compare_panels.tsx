// The panels of a comparison; every number in them is the API's.

import type { ComponentChildren } from 'preact'
import { getJson, query } from '../api/client'
import type { BothSides, Covered, Explanation, GroupsOfBoth, HistogramOfBoth, Leaf, Point, SeriesOfBoth } from '../api/compare'
import { overlaid, valuesOf } from '../core/compare'
import { amount, count, duration as lasting, exactAmount, plain, quantileError, type Unit } from '../core/format'
import type { Pair, Params } from '../core/params'
import { address } from '../core/route'
import { changeText } from '../core/shape'
import { between, instant, parseWindow } from '../core/time'
import { useAnswer, useShared, type Answer } from '../parts/app'
import { Chart } from '../parts/chart'
import { styled } from '../parts/chart_over'
import { Histogram } from '../parts/histogram'
import { Curl, Note, State } from '../parts/states'

type Row = { name: string; of: (sides: BothSides | BothSides['previous']) => number | null; change: (sides: BothSides) => Leaf; unit: Unit; isRate?: boolean }
type Family = 'cost' | 'tokens' | 'latency' | 'errors' | 'quality'

const row = (name: string, group: Family, key: string, unit: Unit, isRate = false): Row => ({
  name, unit, isRate, of: (side) => side[group][key] ?? null, change: (sides) => sides.change[group][key]!,
})
const ROWS: readonly Row[] = [
  row('Cost', 'cost', 'total_usd', 'usd'),
  { name: 'Calls', unit: 'spans', of: (side) => side.span_count, change: (sides) => sides.change.span_count },
  row('Cost of a call', 'cost', 'per_call_usd', 'usd/call'),
  row('Tokens', 'tokens', 'total', 'tokens'),
  row('Latency p50', 'latency', 'p50_ms', 'milliseconds'),
  row('Latency p95', 'latency', 'p95_ms', 'milliseconds'),
  row('Latency p99', 'latency', 'p99_ms', 'milliseconds'),
  row('First token p95', 'latency', 'ttft_p95_ms', 'milliseconds'),
  row('Error rate', 'errors', 'rate', 'share', true),
  row('Timeout rate', 'errors', 'timeout_rate', 'share', true),
  row('Quality', 'quality', 'score_avg', 'score'),
]
/** What groups, lines and distributions can show -> its name, unit, and the distribution that belongs to it. */
const METRICS: Record<string, { name: string; unit: Unit; distribution: string; of: string; ofUnit: Unit }> = {
  total_cost: { name: 'cost', unit: 'usd', distribution: 'cost', of: 'the cost of a call', ofUnit: 'usd' },
  span_count: { name: 'calls', unit: 'spans', distribution: 'latency', of: 'latency', ofUnit: 'milliseconds' },
  total_tokens: { name: 'tokens', unit: 'tokens', distribution: 'tokens', of: 'the tokens of a call', ofUnit: 'tokens' },
  latency_p95: { name: 'latency p95', unit: 'milliseconds', distribution: 'latency', of: 'latency', ofUnit: 'milliseconds' },
  ttft_p95: { name: 'first token p95', unit: 'milliseconds', distribution: 'ttft', of: 'the time to the first token', ofUnit: 'milliseconds' },
  error_rate: { name: 'error rate', unit: 'share', distribution: 'latency', of: 'latency', ofUnit: 'milliseconds' },
  quality_score: { name: 'quality', unit: 'score', distribution: 'quality', of: 'quality', ofUnit: 'score' },
}
const DIMENSIONS = ['model', 'caller', 'provider', 'name', 'user_id', 'session_id', 'status', 'kind']
/** Part of a change -> its name, and what it means if it is above 0 and below. */
const PARTS: Record<string, [string, string, string]> = {
  calls: ['Calls', 'there were more of them', 'there were fewer of them'],
  tokens_per_call: ['Tokens per call', 'the calls were larger', 'the calls were smaller'],
  mix: ['Mix of models', 'more tokens went to dearer models', 'more tokens went to cheaper models'],
  price: ['Price of a token', 'the same models cost more per token', 'the same models cost less per token'],
  other_kinds: ['Other spans', 'tools and other kinds of spans cost more', 'tools and other kinds of spans cost less'],
}
const metricOf = (params: Params) => { const name = params.get('metric') ?? ''; return Object.hasOwn(METRICS, name) ? name : 'total_cost' }
const byOf = (params: Params) => params.get('by') ?? (params.names().includes('compare.model') ? 'caller' : 'model')

/** An answer; that to a question about another number is not shown, because it has other units and groups. */
function useBoth<T>(name: string, pairs: readonly Pair[], groups = ''): { answer: Answer<T>; path: string } {
  const metrics = useShared().about?.paths.metrics ?? '/metrics'
  const path = `.${metrics}${name}${query(pairs)}`
  const about = `${name} ${groups}`
  const answer = useAnswer(path, (options) => getJson<T>(path, options).then((data) => ({ about, data })), { refresh: true })
  const data = answer.data?.about === about ? answer.data.data : null
  return { answer: { ...answer, data }, path }
}

/** A panel of one request, and what its sides lack. */
function Panel<T>({ title, asked: { answer, path }, tools, children }: {
  title: string; asked: { answer: Answer<T>; path: string }; tools?: ComponentChildren; children: (data: T) => ComponentChildren
}) {
  const { zone } = useShared()
  const data = answer.data as (T & Partial<Covered> & { previous?: Partial<Covered> }) | null
  return (
    <section class="compare-panel" aria-label={title}>
      <div class="bar compare-head"><h2>{title}</h2>{tools}</div>
      <State answer={answer} />
      {data && <div class={answer.loading ? 'stale' : ''}>
        {([['A', data], ['B', data.previous]] as const).map(([side, told]) => told && told.since && told.from && told.since > told.from && (
          <Note key={side} text={`${side}: spans before ${instant(Date.parse(told.since), zone).slice(0, 19)} may be missing.`} />
        ))}
        {data.incomplete && <Note text={`Incomplete: no answer came from shard ${(data.missing_shards ?? []).join(', ')}.`} />}
        {children(data)}
      </div>}
      <Curl path={path} />
    </section>
  )
}

/** The share of a change of what there was, drawn; the words beside it say it. */
function Bar({ part }: { part: number | null }) {
  if (part === null || part === 0) return null
  const width = `${Math.max(2, Math.min(Math.abs(part), 1) * 60)}px`
  return <span class={`compare-bar ${part > 0 ? 'compare-more' : 'compare-less'}`} aria-hidden="true" ref={styled({ width })} />
}

export function Numbers({ pairs }: { pairs: readonly Pair[] }) {
  const { zone } = useShared()
  const asked = useBoth<BothSides>('', pairs)
  return (
    <Panel title="Numbers" asked={asked}>
      {(data) => (
        <div class="scroll" tabIndex={0} role="region" aria-label="Numbers of both sides">
          <table>
            <thead><tr><th scope="col">number</th><SideHead side="A" of={data} zone={zone} /><SideHead side="B" of={data.previous} zone={zone} /><th scope="col">change from B to A</th></tr></thead>
            <tbody>
              {ROWS.map((each) => (
                <tr key={each.name}>
                  <th scope="row">{each.name}{each.isRate && <span class="compare-when"> of {count(data.span_count)} / {count(data.previous.span_count)}</span>}</th>
                  <td class="number" title={exactAmount(each.of(data), each.unit)}>{amount(each.of(data), each.unit)}</td>
                  <td class="number" title={exactAmount(each.of(data.previous), each.unit)}>{amount(each.of(data.previous), each.unit)}</td>
                  <td class="compare-change">{changeText(each.change(data), each.unit)} <Bar part={each.change(data).ratio} /></td>
                </tr>
              ))}
            </tbody>
          </table>
          <p class="dim">
            {([['A', data], ['B', data.previous]] as const).map(([side, { cost }]) => (cost.unpriced_span_count
              ? `${side}: the cost leaves out ${count(cost.unpriced_span_count)} ${cost.unpriced_span_count === 1 ? 'span' : 'spans'} without a known price. ` : ''))}
            {quantileError(data.quantile_error) && `Latencies are exact to ${quantileError(data.quantile_error)}.`}
          </p>
        </div>
      )}
    </Panel>
  )
}

function SideHead({ side, of, zone }: { side: string; of: Covered; zone: string }) {
  const [from, to] = [Date.parse(of.from), Date.parse(of.to)]
  return <th scope="col" class="number">{side}<br /><span class="compare-when">{between(from, to, Date.now(), zone)}</span></th>
}

export function Explained({ pairs }: { pairs: readonly Pair[] }) {
  const asked = useBoth<Explanation>('/explain', pairs)
  return (
    <Panel title="Why the cost changed" asked={asked}>
      {({ change, parts }) => {
        const most = Math.max(...(parts ?? []).map((part) => Math.abs(part.usd)), 0)
        return parts === null ? <p class="dim">No data: there are no calls of known cost on a side.</p> : (
          <>
            <p>Cost = calls × tokens per call × price of a token. Together: <b>{changeText(change.cost_usd, 'usd')}</b></p>
            <table class="compare-parts">
              <tbody>
                {parts.filter((part) => part.usd !== 0 || part.part !== 'other_kinds').map(({ part, usd }) => (
                  <tr key={part}>
                    <th scope="row">{PARTS[part]![0]}<br /><span class="dim">{usd !== 0 && PARTS[part]![usd > 0 ? 1 : 2]}</span></th>
                    <td class="number" title={exactAmount(usd, 'usd')}>{usd > 0 ? '+' : ''}{amount(usd, 'usd')}</td>
                    <td><Bar part={most ? usd / most : null} /></td>
                  </tr>
                ))}
              </tbody>
            </table>
          </>
        )
      }}
    </Panel>
  )
}

export function GroupsPanel({ pairs, params, change }: { pairs: readonly Pair[]; params: Params; change: (params: Params) => void }) {
  const [metric, by] = [metricOf(params), byOf(params)]
  const { name, unit } = METRICS[metric]!
  const asked = useBoth<GroupsOfBoth>(`/${metric}`, [...pairs, ['groupby', by], ['top', '20'], ['order', 'change']], by)
  const key: `by_${string}` = `by_${by.replace(/^attr\./, '')}`
  const tools = (
    <>
      <label>show <select id="compare-metric" value={metric} onChange={(event) => change(params.with({ metric: event.currentTarget.value }))}>
        {Object.entries(METRICS).map(([value, each]) => <option key={value} value={value}>{each.name}</option>)}
      </select></label>
      <label>by <input id="compare-by" list="compare-dimensions" size={12} key={by} defaultValue={by} onChange={(event) => event.currentTarget.value && change(params.with({ by: event.currentTarget.value }))} /></label>
      <datalist id="compare-dimensions">{DIMENSIONS.map((each) => <option key={each} value={each} />)}</datalist>
    </>
  )
  const link = (value: string) => {
    const filters = [...params].filter(([each]) => !each.startsWith('compare') && !['by', 'metric', 'trace', by].includes(each))
    return address('traces', '', [...filters, [by, value]])
  }
  return (
    <Panel title={`What changed, by ${plain(by)}`} asked={asked} tools={tools}>
      {(data) => {
        const changes = data.change[key] ?? {}
        const most = Math.max(...data.order.map((value) => Math.abs(changes[value]?.absolute ?? 0)), 0)
        return data.order.length === 0 ? <p class="dim">No data on either side.</p> : (
          <div class="scroll" tabIndex={0} role="region" aria-label={`Changes of ${name} by ${plain(by)}`}>
            <table>
              <thead><tr><th scope="col">{plain(by)}</th><th scope="col" class="number">A</th><th scope="col" class="number">B</th><th scope="col" aria-sort="descending">change, largest first</th></tr></thead>
              <tbody>
                {data.order.map((value) => {
                  const [now, before, leaf] = [data[key]?.[value], data.previous[key]?.[value], changes[value]!]
                  return (
                    <tr key={value}>
                      <td class="name"><a href={link(value)}>{plain(value) || '(empty)'}</a>{before === undefined && <span class="compare-mark">new</span>}{now === undefined && <span class="compare-mark">gone</span>}</td>
                      <td class="number">{now === undefined ? '–' : amount(now, unit)}</td>
                      <td class="number">{before === undefined ? '–' : amount(before, unit)}</td>
                      <td class="compare-change">{changeText(leaf, unit)} <Bar part={most && leaf.absolute !== null ? leaf.absolute / most : null} /></td>
                    </tr>
                  )
                })}
                {data.change.other && (
                  <tr>
                    <td class="name dim">{count(Math.max(data.other?.groups ?? 0, data.previous.other?.groups ?? 0))} others together</td>
                    <td class="number">{amount(data.other?.value, unit)}</td><td class="number">{amount(data.previous.other?.value, unit)}</td>
                    <td>{changeText(data.change.other, unit)}</td>
                  </tr>
                )}
              </tbody>
            </table>
          </div>
        )
      }}
    </Panel>
  )
}

export function Overlaid({ pairs, params }: { pairs: readonly Pair[]; params: Params }) {
  const metric = metricOf(params)
  const { name, unit } = METRICS[metric]!
  const asked = useBoth<SeriesOfBoth>(`/${metric}/series`, pairs)
  const values = valuesOf(params)
  return (
    <Panel title={`${name[0]!.toUpperCase()}${name.slice(1)} over time`} asked={asked}>
      {(data) => {
        const points = (all: readonly Point[]) => all.map((point) => ({ at: Date.parse(point.at), value: point.value, partial: point.partial ?? false }))
        const step = parseWindow(data.step) ?? 6e4
        const range = { from: Date.parse(data.from), to: Date.parse(data.to) }
        const shift = range.from - Date.parse(data.previous.from)
        const now = points(data.points)
        const series = [{ name: sideName('A', values?.a), points: now }, { name: sideName('B', values?.b), points: overlaid(now, points(data.previous.points), shift, step) }]
        return (
          <>
            <Chart title={`${name} of both sides`} unit={unit} series={series} step={step} range={range} />
            {shift !== 0 && <p class="dim">B is drawn {lasting(shift)} later than it was.</p>}
          </>
        )
      }}
    </Panel>
  )
}

const sideName = (side: string, value: string | undefined) => (value === undefined ? side : `${side}: ${value}`)

export function Distributions({ pairs, params }: { pairs: readonly Pair[]; params: Params }) {
  const { distribution, of, ofUnit } = METRICS[metricOf(params)]!
  const asked = useBoth<HistogramOfBoth>(`/${distribution}/histogram`, [...pairs, ['buckets', '40']])
  return (
    <Panel title={`How ${of} is distributed`} asked={asked}>
      {(data) => (
        <>
          <p class="dim">Bars are A, outlines are B, each as a share of its own calls: {count(data.count)} and {count(data.previous.count)}.</p>
          <Histogram title={`Distribution of ${of}`} unit={ofUnit} edges={data.edges} counts={data.counts} zero={data.zero} count={data.count}
            before={data.previous} lines={[{ name: 'p50', value: data.p50 }, { name: 'p95', value: data.p95 }]} />
        </>
      )}
    </Panel>
  )
}
