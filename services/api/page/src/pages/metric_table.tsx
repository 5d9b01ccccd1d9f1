// A number by the values of a dimension or attribute.

import type { NumberAnswer, Series } from '../api/metrics'
import { amount, exactAmount, plain, share } from '../core/format'
import { csv } from '../core/csv'
import { address, type Route } from '../core/route'
import { groupAmount, groupsOf, itself, restName, shownPoints, told, unpricedOf } from '../core/shape'
import { go } from '../parts/app'
import { carried } from '../parts/numbers_bar'
import { Sparkline } from '../parts/sparkline'
import type { About } from './metric'

type Row = { value: string; shown: string; now: number | null; before: number | null; absolute: number | null; ratio: number | null; isRest: boolean }

/** The groups of an answer in the API's order, and all others together at the end. */
export function rowsOf(data: NumberAnswer): Row[] {
  const [now, before, changes] = [groupsOf(data), groupsOf(data.previous), groupsOf(data.change)]
  const listed = data.order ?? Object.keys(now)
  const rows = listed.map((value): Row => {
    const leaf = changes[value]
    return {
      value, shown: plain(value) || '(none)', now: now[value] ?? null, before: before[value] ?? null,
      absolute: leaf?.absolute ?? null, ratio: leaf?.ratio ?? null, isRest: false,
    }
  })
  if (!data.other) return rows
  const shown = restName(listed, data.other.groups)
  const leaf = data.change?.other
  return [...rows, {
    value: '', shown: `${shown}: ${data.other.groups} more`, now: data.other.value, before: data.previous?.other?.value ?? null,
    absolute: leaf?.absolute ?? null, ratio: leaf?.ratio ?? null, isRest: true,
  }]
}

export function GroupTable({ data, series, name, metric, route, order }: {
  data: NumberAnswer; series: Series | null; name: string; metric: About; route: Route; order: string
}) {
  const rows = rowsOf(data)
  const { unit, additive, better } = metric
  const lines = series ? groupsOf(series) : {}
  // Lines of one table have one scale, or a small one would look like a large one.
  const most = Math.max(0, ...rows.flatMap((row) => (lines[row.value] ?? []).map((point) => (row.isRest ? 0 : (point.value ?? 0)))))
  const sorted = (column: string) => (order === column ? (column === 'name' ? 'ascending' : 'descending') : 'none')
  const head = (column: string, text: string, isNumber = true) => (
    <th scope="col" class={isNumber ? 'number' : ''} aria-sort={sorted(column)}>
      <button type="button" class="metric-sort" onClick={() => go(address('metric', metric.name, route.params.with({ order: column === 'value' ? null : column })))}>
        {text}{order === column ? (column === 'name' ? ' ▲' : ' ▼') : ''}
      </button>
    </th>
  )
  if (!rows.length) return <p class="dim">no data in this range and in the one before</p>
  const save = () => {
    const cells = rows.map((row) => [row.isRest ? row.shown : row.value, row.now, row.before, row.absolute, row.ratio, additive ? part(row.now, data.value) : null])
    download(`${metric.name} by ${name}.csv`, csv([[name, metric.name, 'before', 'change', 'change_ratio', 'share'], ...cells]))
  }
  return (
    <>
      <div class="scroll">
        <table>
          <thead>
            <tr>{head('name', plain(name), false)}{head('value', 'value')}<th scope="col" class="number">before</th>{head('change', 'change')}
              {additive && <th scope="col" class="number">share</th>}<th scope="col">over time</th></tr>
          </thead>
          <tbody>
            {rows.map((row) => {
              const { text, mood } = told({ absolute: row.absolute, ratio: row.ratio }, unit, better)
              const points = row.isRest ? undefined : lines[row.value]
              return (
                <tr key={row.isRest ? '\u0000rest' : row.value}>
                  <td class="name">{row.isRest ? <span class="dim">{row.shown}</span>
                    : <a href={address('metric', metric.name, carried(route).with({ [name]: row.value }))}>{row.shown}</a>}</td>
                  <td class="number" title={exactAmount(row.now, unit)}>{groupAmount(row.now, unit, row.isRest ? 0 : unpricedOf(data, row.value))}</td>
                  <td class="number" title={exactAmount(row.before, unit)}>{groupAmount(row.before, unit, row.isRest ? 0 : unpricedOf(data.previous, row.value))}</td>
                  <td class={`number ${mood}`}>{text}</td>
                  {additive && <td class="number">{share(part(row.now, data.value))}</td>}
                  <td>{points && <Sparkline points={shownPoints(points, itself)} most={most} name={`${row.shown} over time, highest ${amount(highestOf(points), unit)}`} />}</td>
                </tr>
              )
            })}
          </tbody>
        </table>
      </div>
      <div class="bar"><button type="button" onClick={save}>download as CSV</button></div>
    </>
  )
}

function highestOf(points: readonly { value: number | null }[]): number | null {
  return points.reduce<number | null>((most, { value }) => (value !== null && (most === null || value > most) ? value : most), null)
}

function part(value: number | null, whole: number | null): number | null {
  return value === null || !whole ? null : value / whole
}

/** Hands a text to the browser as a file. */
function download(name: string, text: string): void {
  const url = URL.createObjectURL(new Blob([text], { type: 'text/csv;charset=utf-8' }))
  const link = document.createElement('a')
  link.href = url
  link.download = name
  link.click()
  URL.revokeObjectURL(url)
}
