// A distribution: how many values lie in which interval. Bars of equal width, because the intervals grow with the values.

import { useState } from 'preact/hooks'
import { amount, count, exactCount, share, type Unit } from '../core/format'
import { clusters } from '../core/series'
import { styled } from './chart_over'

export type HistogramProps = {
  /** What is shown, in words: `Distribution of latency`. */
  title: string
  unit: Unit
  /** Edges of the intervals, one more than `counts`; the first value of an interval is above its lower edge. */
  edges: readonly number[]
  counts: readonly number[]
  /** Values that are exactly 0. */
  zero: number
  count: number
  /** The same intervals at another time, drawn as outlines; in parts of its own count. */
  before?: { counts: readonly number[]; zero: number; count: number }
  /** Values to be marked, such as p50 and p95. */
  lines?: readonly { name: string; value: number | null }[]
}

type Bar = { name: string; count: number; before: number | null }

export function Histogram({ title, unit, edges, counts, zero, count: all, before, lines = [] }: HistogramProps) {
  const [isTable, setTable] = useState(false)
  const between = counts.map((value, index): Bar => ({
    name: `${amount(edges[index], unit)} to ${amount(edges[index + 1], unit)}`, count: value, before: before?.counts[index] ?? null,
  }))
  const bars = zero || before?.zero ? [{ name: 'exactly 0', count: zero, before: before?.zero ?? null }, ...between] : between
  if (!all) return <p class="dim">no data in this range</p>
  // Of two times the parts are compared, or a longer one would always be higher.
  const part = (bar: Bar) => bar.count / all
  const partBefore = (bar: Bar) => (bar.before !== null && before?.count ? bar.before / before.count : 0)
  const most = Math.max(...bars.map((bar) => Math.max(part(bar), partBefore(bar))))
  const fullest = bars.reduce((best, bar) => (bar.count > best.count ? bar : best))
  const said = lines.map(({ name, value }) => `${name} ${amount(value, unit)}`).join(', ')
  const place = (value: number) => {
    const at = edges.findIndex((edge) => value <= edge)
    const index = at < 0 ? counts.length - 1 : Math.max(at - 1, 0)
    return ((index + (bars.length - counts.length) + 0.5) / bars.length) * 100
  }
  const placed = lines.flatMap(({ name, value }) => (value === null ? [] : [{ name, at: place(value) }])).sort((a, b) => a.at - b.at)
  // Lines that are close together share a text, which would not be readable over another one.
  const groups = clusters(placed.map(({ at }) => at), 9).map((group) => group.map((index) => placed[index]!))
  return (
    <figure class="chart">
      <div class="histogram" role="img" aria-label={`${title}: ${exactCount(all)} values, most of them ${fullest.name}${said && `; ${said}`}`}>
        {bars.map((bar) => (
          <div key={bar.name} class="histogram-bar" title={`${bar.name}: ${exactCount(bar.count)} (${share(part(bar))})${bar.before === null ? '' : `, before ${exactCount(bar.before)} (${share(partBefore(bar))})`}`}>
            <i class="histogram-now" ref={styled({ height: `${(part(bar) / most) * 100}%` })} />
            {before && <i class="histogram-before" ref={styled({ height: `${(partBefore(bar) / most) * 100}%` })} />}
          </div>
        ))}
        {groups.map((group) => group.map(({ name, at }, index) => (
          <span key={name} class={group[0]!.at > 80 ? 'histogram-line histogram-left' : 'histogram-line'} ref={styled({ left: `${at}%` })}>
            {index === (group[0]!.at > 80 ? 0 : group.length - 1) && group.map((each) => each.name).join(', ')}
          </span>
        )))}
      </div>
      <div class="histogram-axis dim"><span>{amount(edges[0], unit)}</span><span>{amount(edges[edges.length >> 1], unit)}</span><span>{amount(edges[edges.length - 1], unit)}</span></div>
      <figcaption class="chart-legend">
        <span>{said}</span>
        {before && <span class="dim">outline: before</span>}
        <button type="button" class="chart-as-table" aria-pressed={isTable} onClick={() => setTable(!isTable)}>table</button>
      </figcaption>
      {isTable && (
        <div class="scroll chart-table" tabIndex={0} role="region" aria-label={`${title}, as a table`}>
          <table>
            <thead><tr><th scope="col">value</th><th scope="col" class="number">number</th><th scope="col" class="number">share</th>{before && <th scope="col" class="number">before</th>}</tr></thead>
            <tbody>
              {bars.filter((bar) => bar.count || bar.before).map((bar) => (
                <tr key={bar.name}><th scope="row">{bar.name}</th><td class="number">{count(bar.count)}</td><td class="number">{share(part(bar))}</td>{before && <td class="number">{count(bar.before)}</td>}</tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </figure>
  )
}
