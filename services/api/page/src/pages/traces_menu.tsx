// What can be done with a cell of the list: filter for it, filter it out, copy it.

import { useEffect, useLayoutEffect, useRef } from 'preact/hooks'
import type { ListedTrace } from '../api/types'
import { valuesOf, type Column } from '../core/columns'
import { filterFor, filterOut, TRACE_FILTERS, plus } from '../core/filter'
import { cut, plain } from '../core/format'
import type { Pair, Params } from '../core/params'
import { address, type Route } from '../core/route'
import { go, toHeading, useShared } from '../parts/app'

export type Cell = { column: Column; trace: ListedTrace; at: HTMLElement }

const MOST_TEXT = 60

/** Shows the traces that have what a cell shows. */
export function filterBy(route: Route, cell: Cell): boolean {
  const { filter } = cell.column
  const [value] = valuesOf(cell.column, cell.trace)
  if (!filter || value === undefined) return false
  show(route, filterFor(filter, value))
  return true
}

function show(route: Route, pairs: readonly Pair[]): void {
  go(address('traces', '', pairs.reduce((params: Params, [name, value]) => plus(params, TRACE_FILTERS, name, value), route.params)))
  toHeading()
}

export function CellMenu({ route, cell, close }: { route: Route; cell: Cell; close: () => void }) {
  const { say } = useShared()
  const menu = useRef<HTMLDivElement>(null)
  const { filter, label } = cell.column
  const values = valuesOf(cell.column, cell.trace)
  useLayoutEffect(() => {
    const element = menu.current!
    const [own, box] = [element.getBoundingClientRect(), cell.at.getBoundingClientRect()]
    element.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`
    element.style.top = `${box.bottom + own.height > innerHeight ? Math.max(8, box.top - own.height) : box.bottom}px`
    element.querySelector('button')?.focus()
  }, [cell])
  const leave = () => {
    close()
    cell.at.focus()
  }
  useEffect(() => {
    const elsewhere = (event: Event) => {
      if (!menu.current?.contains(event.target as Node)) close()
    }
    addEventListener('pointerdown', elsewhere)
    addEventListener('scroll', elsewhere, true)
    return () => {
      removeEventListener('pointerdown', elsewhere)
      removeEventListener('scroll', elsewhere, true)
    }
  }, [close])
  const pressed = (event: KeyboardEvent) => {
    const items = [...menu.current!.querySelectorAll('button')]
    const at = items.indexOf(document.activeElement as HTMLButtonElement)
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    if (step) items[(at + step + items.length) % items.length]!.focus()
    else if (event.key === 'Escape' || event.key === 'Tab') leave()
    else if (event.key !== 'Enter' && event.key !== ' ') return
    event.stopPropagation()
    if (event.key !== 'Enter' && event.key !== ' ') event.preventDefault()
  }
  const copy = async (text: string) => {
    leave()
    if (!navigator.clipboard) return say('The browser lets no page copy here.')
    await navigator.clipboard.writeText(text).then(() => say('Copied'), () => say('The browser refused to copy'))
  }
  const named = (value: string) => `${label === 'models' ? 'model' : label} ${cut(plain(value), MOST_TEXT) || '(none)'}`
  return (
    <div class="traces-menu" role="menu" aria-label={`${label} of the trace`} ref={menu} onKeyDown={pressed}>
      {(filter ? values : []).map((value) => [
        <button key={value} type="button" role="menuitem" onClick={() => { close(); show(route, filterFor(filter!, value)) }}>only {named(value)}</button>,
        <button key={`not ${value}`} type="button" role="menuitem" onClick={() => { close(); show(route, filterOut(filter!, value)) }}>without {named(value)}</button>,
      ])}
      {values.some((value) => value) && <button type="button" role="menuitem" onClick={() => void copy(values.join('\n'))}>copy</button>}
    </div>
  )
}
