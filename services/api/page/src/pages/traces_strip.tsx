// The strip above the list: how many of its traces started when, and how many failed.

import { getJson, query } from '../api/client'
import { within, filtersOf } from '../core/filter'
import { exactCount, money, sum } from '../core/format'
import { rangeOf, parseWindow } from '../core/time'
import type { Route } from '../core/route'
import { useAnswer, zoomTo } from '../parts/app'
import { Chart, type Line } from '../parts/chart'
import { Curl, Note, State } from '../parts/states'
import type { TraceSeries } from '../api/types'

const COLOURS = { ok: 'var(--ok)', failed: 'var(--error)' }

/** *version* grows when the list is asked anew; only a window is asked anew by itself, because it is bounded. */
export function Strip({ route, version }: { route: Route; version: number }) {
  const range = rangeOf(route.params)
  const path = typeof range === 'string' ? null : `./traces/series${query([...filtersOf(route.params), ...within(range)])}`
  const answer = useAnswer(path && `${path}\n${version}`, (options) => getJson<TraceSeries>(path!, options), {
    refresh: typeof range !== 'string' && range.kind === 'window',
  })
  if (path === null) return null
  const { data } = answer
  const [from, to] = data ? [data.from, data.to] : [null, null]
  return (
    <section class={answer.loading ? 'traces-strip stale' : 'traces-strip'} aria-label="Traces over time">
      <State answer={answer} />
      {data && from && to && (
        <>
          <p class="bar traces-sums">
            <strong>{exactCount(data.trace_count)} {data.trace_count === 1 ? 'trace' : 'traces'}</strong>
            <span>{exactCount(data.error_count)} failed</span>
            <span>cost {sum(data.total_cost_usd, data.unpriced_span_count)}</span>
            <span>{exactCount(data.span_count)} spans</span>
            <span class="dim">one bar is {data.step}</span>
          </p>
          <Chart title="Traces by start" unit="count" height={110} stacked series={lines(data)} total={total(data)} colours={COLOURS}
            step={parseWindow(data.step) ?? 1000} range={{ from: Date.parse(from), to: Date.parse(to) }}
            onBrush={(begin, end) => zoomTo(route, begin, end)} />
        </>
      )}
      {data?.searched_until && (
        <Note text={`There is too much to search: traces that started before ${data.searched_until} are not in these sums.`} />
      )}
      {data && <Curl path={path} />}
    </section>
  )
}

function lines(data: TraceSeries): Line[] {
  const line = (name: string, value: (point: TraceSeries['points'][number]) => number): Line => ({
    name, points: data.points.map((point) => ({ at: Date.parse(point.at), value: value(point), partial: point.partial ?? false })),
  })
  return [line('ok', (point) => point.ok_count), line('failed', (point) => point.error_count)]
}

function total(data: TraceSeries): Line['points'] {
  return data.points.map((point) => ({
    at: Date.parse(point.at), value: point.trace_count, partial: point.partial ?? false,
    note: point.unpriced_span_count || point.total_cost_usd === null ? `, ${sum(point.total_cost_usd, point.unpriced_span_count)}` : `, ${money(point.total_cost_usd)}`,
  }))
}
