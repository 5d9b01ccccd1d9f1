// What it cost, how slow and how good it was, which calls, what changed, and which rule fires.

import { useEffect, useState } from 'preact/hooks'
import { getJson } from '../api/client'
import type { EventPage, RuleState } from '../api/alerts'
import { metricParams, type Everything } from '../api/metrics'
import { follow } from '../api/stream'
import type { TracePage } from '../api/types'
import { filtersOf, METRIC_FILTERS } from '../core/filter'
import { plain } from '../core/format'
import { address, type Route } from '../core/route'
import { ago, type Range } from '../core/time'
import { go, useAnswer, useKeys, useShared, useTitle } from '../parts/app'
import { FirstSpan } from '../parts/first_span'
import { NumbersBar } from '../parts/numbers_bar'
import { useAsked, type Asked } from '../parts/panel'
import { rangeIn } from '../parts/range'
import { askRules, RULES_PATH, useRules } from '../parts/rules'
import { Curl, Note, State } from '../parts/states'
import { Cards } from './overview_cards'
import { ByDimension, firings, OverTime } from './overview_charts'
import { Changed, Firing, MostOf, mostOf } from './overview_tables'
import './overview.css'

export function Overview({ route }: { route: Route }) {
  const heading = useTitle('Overview', 'overview')
  const range = rangeIn(route)
  const params = typeof range === 'string' ? null : metricParams(range, route.params, { compare: 'before' })
  const all = useAsked<Everything>('/metrics', params)
  useKeys('overview', (action) => {
    if (action === 'refresh') return all.answer.reload(), true
    if (action === 'dearest') return go(address('calls', '', mostOf(route, 'cost'))), true
    if (action === 'slowest') return go(address('calls', '', mostOf(route, 'latency'))), true
    return false
  })
  const { data } = all.answer
  const isEmpty = data !== null && data.span_count === 0 && (data.cost.total_usd ?? 0) === 0
  return (
    <>
      <h1 ref={heading} tabIndex={-1}>Overview</h1>
      <NumbersBar route={route} />
      {typeof range === 'string' && <Note kind="error" text={plain(range)} />}
      {params && <State answer={all.answer} />}
      {data && isEmpty && <Nothing route={route} found={all.answer.reload} />}
      {data && params && (
        <div class={all.answer.loading ? 'stale' : ''}>
          <Cards data={data} route={route} />
          <Curl path={all.path} />
        </div>
      )}
      {data && !isEmpty && typeof range !== 'string' && (
        <Panels route={route} range={range} data={data} />
      )}
    </>
  )
}

function Panels({ route, range, data }: { route: Route; range: Range; data: Everything }) {
  // The header asks for the rules on every page.
  const rules: Asked<RuleState[]> = { answer: { ...useRules(), reload: askRules }, path: RULES_PATH }
  // The beginning of a live range moves on, and would make each request another one.
  const since = new Date(Math.floor(Date.parse(data.from) / 6e4) * 6e4).toISOString()
  const events = useAsked<EventPage>('/alerts/events', [['since', since], ['limit', '200']])
  const marks = firings(events.answer.data)
  return (
    <div class="panels">
      <ByDimension route={route} range={range} all={data} marks={marks} />
      <OverTime route={route} range={range} rules={rules.answer.data ?? []} marks={marks} />
      <Changed route={route} range={range} />
      <Firing route={route} asked={rules} events={events} />
      <MostOf route={route} range={range} order="cost" />
      <MostOf route={route} range={range} order="latency" />
    </div>
  )
}

/** Why there is nothing: no span at all, none in this range, or none that matches. */
function Nothing({ route, found }: { route: Route; found: () => void }) {
  const [arrived, setArrived] = useState(0)
  const newest = useAnswer<TracePage>(`newest ${arrived}`, (options) => getJson<TracePage>('./traces?limit=1', options))
  const filters = filtersOf(route.params, METRIC_FILTERS)
  const hasNone = newest.data?.count === 0
  useEffect(() => {
    const control = new AbortController()
    void follow('./traces/tail', control.signal, (event) => {
      if (event.name === 'dropped') return
      setArrived((before) => before + 1)
      found()
    }, () => undefined)
    return () => control.abort()
  }, [])
  const { zone } = useShared()
  if (!newest.data) return <State answer={newest} />
  if (hasNone) return <FirstSpan />
  const last = newest.data.traces[0]!
  const at = Date.parse(last.started_at)
  return (
    <div class="empty">
      <p>No call in this range{filters.length > 0 && ' matches the filters'}. The newest trace began {ago(at, Date.now())} <span class="dim">({zone})</span>.</p>
      <div class="bar">
        {filters.map(([name, value]) => (
          <button type="button" key={name + value} onClick={() => go(address('overview', '', route.params.without(name, value)))}>without {plain(name)} = {plain(value) || '(none)'}</button>
        ))}
        <button type="button" onClick={() => go(address('overview', '', route.params.with({ from: new Date(at - 1.8e6).toISOString(), to: new Date(at + 1.8e6).toISOString(), window: null })))}>
          the hour around it
        </button>
        <button type="button" onClick={() => go(address('overview', '', route.params.with({ window: '7d', from: null, to: null })))}>the last 7 days</button>
      </div>
    </div>
  )
}
