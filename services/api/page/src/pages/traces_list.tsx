// The rows of the list of traces. Every cell that can be filtered by is a button with a menu.

import { useState } from 'preact/hooks'
import type { ListedTrace } from '../api/types'
import { columnOf, valuesOf, type Column } from '../core/columns'
import { count, cut, duration, exactCount, exactMoney, plain, score, sum, NONE } from '../core/format'
import { address, type Route } from '../core/route'
import { allAbout, shortInstant } from '../core/time'
import { useShared } from '../parts/app'
import { leaveList, listParams } from '../parts/kept_list'
import { mark } from '../parts/status'
import { CellMenu, type Cell } from './traces_menu'

const MOST_TEXT = 120

type Props = {
  route: Route
  traces: readonly ListedTrace[]
  columns: readonly Column[]
  order: string
  sort: (order: string) => void
  selected: readonly string[]
  select: (id: string) => void
  now: number
}

export function List(props: Props) {
  const { route, traces, columns, order, sort, selected, select } = props
  const [menu, open] = useState<Cell | null>(null)
  const longest = Math.max(...traces.map((trace) => trace.duration_ms), 1e-6)
  const across = (event: KeyboardEvent) => {
    const step = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0
    const target = event.target as HTMLElement
    if (!step || event.ctrlKey || event.altKey || event.metaKey || target.closest('[role=menu]')) return
    const cells = [...(target.closest('tr')?.querySelectorAll<HTMLElement>('[data-cell]') ?? [])]
    const next = cells[cells.indexOf(target) + step]
    if (cells.includes(target)) event.preventDefault()
    next?.focus()
  }
  return (
    <div class="scroll traces-scroll">
      <table class="traces">
        <thead>
          <tr>
            <th class="traces-choice"><span class="unseen">compare</span></th>
            {columns.map((column) => (
              <th key={column.id} class={column.number ? 'number' : ''} aria-sort={column.order === order ? 'descending' : column.order ? 'none' : undefined}>
                {column.order ? (
                  <button type="button" class="traces-sort" title={`the largest ${column.label} first`} onClick={() => sort(column.order!)}>
                    {column.label}{column.order === order ? ' ▾' : ''}
                  </button>
                ) : plain(column.label)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody onKeyDown={across}>
          {traces.map((trace) => (
            <tr key={trace.trace_id} data-trace={trace.trace_id} class={selected.includes(trace.trace_id) ? 'traces-chosen' : ''}>
              <td class="traces-choice">
                <label><input type="checkbox" tabIndex={-1} checked={selected.includes(trace.trace_id)} onChange={() => select(trace.trace_id)}
                  aria-label={`compare ${plain(trace.name)}`} /></label>
              </td>
              {columns.map((column) => <Shown key={column.id} {...props} trace={trace} column={column} longest={longest} open={open} />)}
            </tr>
          ))}
        </tbody>
      </table>
      {menu && <CellMenu route={route} cell={menu} close={() => open(null)} />}
    </div>
  )
}

type ShownProps = Props & { trace: ListedTrace; column: Column; longest: number; open: (cell: Cell) => void }

function Shown({ route, trace, column, longest, now, open }: ShownProps) {
  const { zone } = useShared()
  const button = (text: string, title = text, className = '') => (
    <button type="button" class={`traces-cell ${className}`} data-cell={column.id} tabIndex={-1} title={title} aria-haspopup="menu"
      onClick={(event) => open({ column, trace, at: event.currentTarget })}>
      {text}
    </button>
  )
  switch (column.id) {
    case 'started': {
      const at = Date.parse(trace.started_at)
      return <td class="time" title={allAbout(at, now, zone)}>{shortInstant(at, now, zone)}</td>
    }
    case 'name':
      return (
        <td class="name">
          <a href={address('trace', trace.trace_id, listParams(route.params))} data-cell="name" onClick={() => leaveList(trace.trace_id)}>{plain(trace.name) || '(no name)'}</a>
          {trace.error && <span class="traces-error" title={plain(trace.error)}>{cut(plain(trace.error), MOST_TEXT)}</span>}
        </td>
      )
    case 'status': return <td>{button(mark(trace.status) + trace.status, trace.status, `status-${trace.status}`)}</td>
    case 'duration':
      return (
        <td class="number traces-duration" title={`${duration(trace.duration_ms)}; the bar is its part of the longest trace on this page`}>
          {duration(trace.duration_ms)}
          <span class="traces-bar" aria-hidden="true" ref={(element) => { if (element) element.style.width = `${(trace.duration_ms / longest) * 100}%` }} />
        </td>
      )
    case 'cost': {
      const isLess = trace.total_cost_usd !== null && trace.partly_priced_span_count > 0
      return (
        <td class="number" title={`${exactMoney(trace.total_cost_usd)}${isLess ? `\n${exactCount(trace.partly_priced_span_count)} spans are priced in part` : ''}`}>
          {isLess ? '≥ ' : ''}{sum(trace.total_cost_usd, trace.unpriced_span_count)}
        </td>
      )
    }
    case 'tokens': return <td class="number" title={exactCount(trace.total_tokens)}>{count(trace.total_tokens)}</td>
    case 'spans': return <td class="number">{exactCount(trace.span_count)}</td>
    case 'score': return <td class="number">{score(trace.score)}</td>
    default: {
      const values = valuesOf(column, trace).filter((value) => value !== '')
      if (!values.length) return <td>{column.id.startsWith('attr.') ? <span class="dim">{NONE}</span> : button(NONE, `without ${column.label}`, 'dim')}</td>
      const text = values.length > 2 ? `${plain(values[0]!)} + ${values.length - 1} more` : values.map((value) => plain(value)).join(', ')
      return <td class="traces-text">{button(cut(text, MOST_TEXT), values.map((value) => plain(value)).join('\n'))}</td>
    }
  }
}

/** The cell that has the focus, and the trace of its row. */
export function focusedCell(traces: readonly ListedTrace[]): Cell | null {
  const at = document.activeElement as HTMLElement | null
  const trace = traces.find((each) => each.trace_id === at?.closest<HTMLElement>('tr[data-trace]')?.dataset.trace)
  const column = at?.dataset.cell ? columnOf(at.dataset.cell) : null
  return trace && column && at ? { column, trace, at } : null
}
