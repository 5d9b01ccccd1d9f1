// Two traces side by side, matched by the names on the way from the root to each span.

import { useMemo, useState } from 'preact/hooks'
import { getRows, timelineAt, traceAt, type Head } from '../api/trace'
import { changeText } from '../core/shape'
import { count, duration, exactCount, exactMoney, money, plain, sum } from '../core/format'
import { address, type Route } from '../core/route'
import { instant, offset } from '../core/time'
import { matched, type Held, type Matched } from '../core/tracepairs'
import { treeOf, type Row } from '../core/tree'
import { useAnswer, useShared } from '../parts/app'
import { Curl, Note, State } from '../parts/states'
import { styled } from '../parts/chart_over'

/** How many rows are shown at first. */
const FEW = 300
type Loaded = { id: string; head: Head; rows: Row[] }

export function TwoTraces({ route }: { route: Route }) {
  const ids = route.params.all('trace')
  if (ids.length !== 2) return <Note kind="error" text={`trace: is given ${ids.length === 1 ? 'once' : `${ids.length} times`}; two traces can be compared`} />
  return <Both a={ids[0]!} b={ids[1]!} route={route} />
}

function Both({ a, b, route }: { a: string; b: string; route: Route }) {
  const one = useTrace(a)
  const other = useTrace(b)
  const [left, right] = [one.data, other.data]
  const exchanged = address('compare', '', [...route.params.without('trace'), ['trace', b], ['trace', a]])
  return (
    <>
      <div class="bar"><a href={exchanged}>⇄ exchange A and B</a></div>
      {!left && <State answer={one} />}
      {!right && <State answer={other} />}
      {left && right && <Table left={left} right={right} />}
      <Curl path={timelineAt(a)} />
      <Curl path={timelineAt(b)} />
    </>
  )
}

const useTrace = (id: string) => useAnswer(traceAt(id), (options): Promise<Loaded> => getRows(id, undefined, options).then((found) => ({ id, ...found })))

function Table({ left, right }: { left: Loaded; right: Loaded }) {
  const [most, setMost] = useState(FEW)
  const rows = useMemo(() => matched(treeOf(left.rows), treeOf(right.rows)), [left.rows, right.rows])
  const hidden = [left, right].filter(({ head, rows: own }) => own.length < head.row_count)
  return (
    <>
      {hidden.map(({ id, head, rows: own }) => <Note key={id} text={`Of ${plain(id)}, ${exactCount(own.length)} of ${exactCount(head.row_count)} spans are compared: the top levels.`} />)}
      <div class="scroll" tabIndex={0} role="region" aria-label="Both traces">
        <table class="compare-traces">
          <thead>
            <tr>
              <th scope="col">spans, by the names above them</th>
              <th scope="col" class="number">A spans</th><th scope="col" class="number">B</th>
              <th scope="col" class="number">A duration</th><th scope="col" class="number">B</th><th scope="col">from B to A</th>
              <th scope="col" class="number">A cost</th><th scope="col" class="number">B</th><th scope="col">from B to A</th>
            </tr>
            <Whole left={left} right={right} />
          </thead>
          <tbody>{rows.slice(0, most).map((row, index) => <Line key={index} row={row} />)}</tbody>
        </table>
      </div>
      {rows.length > most && <p><button type="button" onClick={() => setMost(most * 4)}>show more: {exactCount(most)} of {exactCount(rows.length)} rows are shown</button></p>}
    </>
  )
}

/** The traces as a whole. */
function Whole({ left, right }: { left: Loaded; right: Loaded }) {
  const { zone } = useShared()
  const [one, other] = [left.head, right.head]
  const cost = (head: Head) => <span title={exactMoney(head.total_cost_usd)}>{sum(head.total_cost_usd, head.unpriced_span_count)}</span>
  const named = ({ id, head }: Loaded, side: string) => {
    const started = Date.parse(head.started_at)
    return <div>{side} <a href={address('trace', id)}>{plain(head.name) || '(no name)'}</a> <span class="dim">{instant(started, zone)} {offset(started, zone)}</span></div>
  }
  return (
    <tr class="compare-whole">
      <th scope="row">{named(left, 'A')}{named(right, 'B')}</th>
      <td class="number">{count(one.row_count)}</td><td class="number">{count(other.row_count)}</td>
      <td class="number">{duration(one.duration_ms)}</td><td class="number">{duration(other.duration_ms)}</td>
      <td>{changeText(changeOf(one.duration_ms, other.duration_ms), 'milliseconds')}</td>
      <td class="number">{cost(one)}</td><td class="number">{cost(other)}</td>
      <td>{one.total_cost_usd === null || other.total_cost_usd === null ? 'no data' : costText(Math.round(one.total_cost_usd * 1e9), Math.round(other.total_cost_usd * 1e9))}</td>
    </tr>
  )
}

function Line({ row: { name, level, a, b } }: { row: Matched }) {
  const cost = (held: Held | null) => (held === null ? '–' : held.nusd === 0 && held.unpriced ? `${count(held.unpriced)} unpriced` : sum(held.nusd / 1e9, held.unpriced))
  return (
    <tr>
      <th scope="row" class="name" ref={styled({ paddingLeft: `${8 + Math.min(level, 12) * 14}px` })}>
        {level > 12 && <span class="dim">{level}: </span>}{plain(name) || '(no name)'}
        {!b && <span class="compare-mark">only in A</span>}{!a && <span class="compare-mark">only in B</span>}
        {[a?.failed && `A ✕ ${count(a.failed)}`, b?.failed && `B ✕ ${count(b.failed)}`].filter(Boolean).map((text) => <span key={text as string} class="status-error"> {text}</span>)}
      </th>
      <td class="number">{a ? count(a.spans) : '–'}</td><td class="number">{b ? count(b.spans) : '–'}</td>
      <td class="number">{duration(a?.ms)}</td><td class="number">{duration(b?.ms)}</td>
      <td>{a && b ? changeText(changeOf(a.ms, b.ms), 'milliseconds') : ''}</td>
      <td class="number">{cost(a)}</td><td class="number">{cost(b)}</td>
      <td>{a && b ? costText(a.nusd, b.nusd) : ''}</td>
    </tr>
  )
}

/** The change between two whole numbers of nano-dollars. */
function costText(now: number, before: number): string {
  return now === 0 && before === 0 ? money(0) : changeText({ absolute: (now - before) / 1e9, ratio: before ? (now - before) / before : null }, 'usd')
}

/** The change of two times, in whole nanoseconds. */
function changeOf(now: number | null, before: number | null) {
  if (now === null || before === null) return { absolute: null, ratio: null }
  const absolute = Math.round((now - before) * 1e6) / 1e6
  return { absolute, ratio: before ? absolute / before : null }
}
