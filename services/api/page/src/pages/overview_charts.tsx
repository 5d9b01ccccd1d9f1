// The charts of the Overview: cost by a dimension, latency, errors, quality.

import type { ComponentChildren } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import { getJson } from '../api/client'
import type { EventPage, RuleState } from '../api/alerts'
import { metricParams, type ApiPoint, type Coverage, type Everything, type Groups, type Series } from '../api/metrics'
import { SYMBOLS } from '../core/alerts'
import { amount, plain, type Unit } from '../core/format'
import { address, type Route } from '../core/route'
import { DIMENSIONS, firstSeen, groupedBy, groupsOf, itself, linesOf, shownPoints, stepOf } from '../core/shape'
import type { Range } from '../core/time'
import { go, zoomTo } from '../parts/app'
import { Chart, type Exemplar, type Mark, type Threshold } from '../parts/chart'
import { carried, passed } from '../parts/numbers_bar'
import { Panel, useAsked, type Asked } from '../parts/panel'

/** The cursor of all charts of the Overview. */
const SYNC = 'overview'
const LINES = '10'

export function dimensionOf(route: Route): string {
  return route.params.get('groupby') ?? 'model'
}

/** The choice of a dimension; keys of attributes are asked for when the list is opened. */
export function Dimension({ route, id }: { route: Route; id: string }) {
  const [keys, setKeys] = useState<string[]>([])
  const [isAsked, setAsked] = useState(false)
  const value = dimensionOf(route)
  useEffect(() => {
    if (!isAsked) return
    const control = new AbortController()
    void getJson<{ keys: { key: string }[] }>('./keys?limit=100', { signal: control.signal }).then(
      (answer) => setKeys(answer.keys.map(({ key }) => `attr.${key}`)),
      // Without the keys, the dimensions can still be chosen.
      () => undefined,
    )
    return () => control.abort()
  }, [isAsked])
  const listed = [...DIMENSIONS, ...keys]
  return (
    <span class="panel-choice">
      <label class="dim" for={id}>by</label>
      <select id={id} value={value} onFocus={() => setAsked(true)} onPointerDown={() => setAsked(true)} onChange={(event) => {
        if (route.page !== 'missing') go(address(route.page, route.id, route.params.with({ groupby: event.currentTarget.value })))
      }}>
        {[...(listed.includes(value) ? [] : [value]), ...listed].map((name) => <option key={name} value={name}>{plain(name)}</option>)}
      </select>
    </span>
  )
}

export function bounds(answer: { from: string; to: string }): { from: number; to: number } {
  return { from: Date.parse(answer.from), to: Date.parse(answer.to) }
}

export function ByDimension({ route, range, all, marks }: { route: Route; range: Range; all: Everything; marks: readonly Mark[] }) {
  const key = dimensionOf(route)
  const asked = useAsked<Series>('/metrics/total_cost/series', metricParams(range, route.params, { groupby: key, top: LINES }))
  return (
    <Panel title={<a href={address('metric', 'total_cost', passed(route))}>Cost over time</a>} asked={asked} actions={<Dimension route={route} id="dimension" />}>
      {(data) => {
        const shown = groupedBy(data, key)
        return (
          <Chart title={`Cost by ${plain(shown)}`} unit="usd" stacked series={linesOf(data)} total={shownPoints(data.points, itself)} step={stepOf(data)}
            range={bounds(data)} marks={[...marks, ...(shown === 'model' ? newModels(data, all) : [])]} sync={SYNC} onBrush={(from, to) => zoomTo(route, from, to)} />
        )
      }}
    </Panel>
  )
}

/** The first calls of models of which there was none in the range before. */
function newModels(data: Series, all: Everything): Mark[] {
  return Object.entries(all.change?.cost.by_model ?? {}).flatMap(([model, leaf]) => {
    const points = groupsOf(data)[model]
    const at = leaf.ratio === null && leaf.absolute !== null && points ? firstSeen(points) : null
    return at === null ? [] : [{ at, name: `first calls of ${model}: there were none in the range before` }]
  })
}

type InSteps = Coverage & { step: string; points: ApiPoint<Groups>[]; exemplars: { trace_id: string; span_id: string; name: string; started_at: string; latency_ms: number }[] }

export function OverTime({ route, range, rules, marks }: { route: Route; range: Range; rules: readonly RuleState[]; marks: readonly Mark[] }) {
  const asked = useAsked<InSteps>('/metrics/series', metricParams(range, route.params))
  const line = (data: InSteps, name: string, group: 'latency' | 'errors' | 'quality', field: string) => ({
    name, points: shownPoints(data.points, (value: Groups) => value[group][field] ?? null),
  })
  const shared = (data: InSteps) => ({ step: stepOf(data), range: bounds(data), marks, sync: SYNC, onBrush: (from: number, to: number) => zoomTo(route, from, to) })
  const limit = (names: Record<string, string>, unit: Unit) => thresholds(rules, route, names, unit)
  return (
    <>
      <Titled asked={asked} route={route} title="Latency" metric="latency_p95">
        {(data) => (
          <Chart {...shared(data)} title="Latency" unit="milliseconds" exemplars={dots(data, route)}
            colours={{ p50: 'var(--hue-6)', p95: 'var(--hue-8)', p99: 'var(--hue-10)' }}
            series={['p50', 'p95', 'p99'].map((name) => line(data, name, 'latency', `${name}_ms`))}
            thresholds={limit({ latency_p50: 'p50', latency_p95: 'p95', latency_p99: 'p99' }, 'milliseconds')} />
        )}
      </Titled>
      <Titled asked={asked} route={route} title="Errors and timeouts" metric="error_rate">
        {(data) => (
          <Chart {...shared(data)} title="Errors and timeouts" unit="share" colours={{ 'all errors': 'var(--error)', timeouts: 'var(--warning)' }}
            series={[line(data, 'all errors', 'errors', 'rate'), line(data, 'timeouts', 'errors', 'timeout_rate')]}
            thresholds={limit({ error_rate: 'error rate', timeout_rate: 'timeout rate' }, 'share')} />
        )}
      </Titled>
      <Titled asked={asked} route={route} title="Quality" metric="quality_score">
        {(data) => (
          <Chart {...shared(data)} title="Quality" unit="score" colours={{ mean: 'var(--hue-4)', 'lowest tenth (p10)': 'var(--hue-2)' }}
            series={[line(data, 'mean', 'quality', 'score_avg'), line(data, 'lowest tenth (p10)', 'quality', 'score_p10')]}
            thresholds={limit({ quality_score: 'mean', quality_p10: 'p10', quality_p50: 'p50' }, 'score')} />
        )}
      </Titled>
    </>
  )
}

function Titled({ asked, route, title, metric, children }: {
  asked: Asked<InSteps>; route: Route; title: string; metric: string; children: (data: InSteps) => ComponentChildren
}) {
  return <Panel title={<a href={address('metric', metric, passed(route))}>{title}</a>} asked={asked}>{children}</Panel>
}

/** The slowest calls as dots. */
function dots(data: InSteps, route: Route): Exemplar[] {
  return data.exemplars.map((each) => ({
    at: Date.parse(each.started_at) + each.latency_ms, value: each.latency_ms, name: each.name || 'call',
    href: address('trace', each.trace_id, carried(route).with({ span: each.span_id })),
  }))
}

/** The limits of the rules whose numbers a chart shows: without groups, on the same spans, and not on a change. */
export function thresholds(rules: readonly RuleState[], route: Route, metrics: Readonly<Record<string, string>>, unit: Unit): Threshold[] {
  return rules.flatMap((rule) => {
    const shown = metrics[rule.metric]
    const isSame = Object.entries(rule.filter).every(([name, value]) => route.params.get(name) === value)
    if (shown === undefined || rule.group_by !== null || rule.change !== null || !isSame) return []
    return [{ value: rule.threshold, name: `${rule.name}: ${shown} ${SYMBOLS[rule.op]} ${amount(rule.threshold, unit)}` }]
  })
}

/** The firings of rules as flags. */
export function firings(answer: EventPage | null): Mark[] {
  return (answer?.events ?? [])
    .filter((event) => event.status === 'firing')
    .map((event) => ({ at: Date.parse(event.fired_at), name: `${event.alert} fired`, href: address('rule', event.alert) }))
}
