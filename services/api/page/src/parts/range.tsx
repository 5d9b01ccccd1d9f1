// The choice of the time that a page shows.

import { useRef, useState } from 'preact/hooks'
import { plain } from '../core/format'
import { address, type Page, type Route } from '../core/route'
import { fieldOf, offset, parseField, parseWindow, rangeOf, shifted, type Range } from '../core/time'
import { go, useShared } from './app'

const WINDOWS = ['15m', '1h', '6h', '24h', '7d', '30d']
const ALL: Range = { kind: 'all' }
const HOUR: Range = { kind: 'window', window: '1h', ms: 3.6e6 }
const SIX_HOURS: Range = { kind: 'window', window: '6h', ms: 2.16e7 }
/** The pages that show a time range -> the one that they show without a choice. */
const DEFAULTS: Partial<Record<Page, Range>> = { overview: HOUR, metric: HOUR, compare: HOUR, traces: ALL, calls: ALL, sessions: ALL, rule: SIX_HOURS }

/** The range that a page shows; text = what is wrong with the address. */
export function rangeIn(route: Route): Range | string {
  return rangeOf(route.params, DEFAULTS[route.page] ?? ALL)
}

export function hasRange(page: Page): boolean {
  return DEFAULTS[page] !== undefined
}

/** The parameters that let another page show the range that this one shows; "all stored" is the default of the others. */
export function rangeParams(route: Route): Record<string, string> {
  const range = rangeIn(route)
  if (typeof range === 'string' || range.kind === 'all' || route.page === 'rule') return {}
  return range.kind === 'window' ? { window: range.window } : { from: range.from, to: range.to }
}

/** After how many milliseconds a page asks anew; null = it never does. */
export function refreshOf(route: Route, live: boolean): number | null {
  const range = rangeIn(route)
  if (!live || typeof range === 'string' || range.kind === 'fixed') return null
  return range.kind === 'window' && range.ms >= 8.64e7 ? 15_000 : 10_000
}

/** Shows the time before (-1) or after (1) the shown one; false = there is none. */
export function moveRange(route: Route, direction: 1 | -1): boolean {
  const range = rangeIn(route)
  const next = typeof range === 'string' || !hasRange(route.page) ? null : shifted(range, direction, Date.now())
  if (next === null || route.page === 'missing') return false
  go(address(route.page, route.id, route.params.with({ window: null, cursor: null, ...next })))
  return true
}

export function RangeChoice({ route }: { route: Route }) {
  const dialog = useRef<HTMLDialogElement>(null)
  const { live, setLive } = useShared()
  const range = rangeIn(route)
  const value = typeof range === 'string' ? 'wrong' : range.kind === 'window' ? range.window : range.kind
  const own = value === 'fixed' || value === 'wrong' || value === 'all' || WINDOWS.includes(value) ? [] : [value]
  const choose = (window: string) => {
    if (route.page === 'missing') return
    // A page that shows an hour without a choice has no other way to say "all".
    const chosen = window === 'all' ? null : window
    go(address(route.page, route.id, route.params.with({ window: chosen, from: null, to: null, cursor: null })))
  }
  return (
    <>
      <label class="unseen" for="range">range</label>
      <select id="range" value={value} onChange={(event) => {
        const chosen = event.currentTarget.value
        if (chosen !== 'fixed') return choose(chosen)
        event.currentTarget.value = value
        dialog.current?.showModal()
      }}>
        {value === 'wrong' && <option value="wrong">not understood</option>}
        {DEFAULTS[route.page]?.kind === 'all' && <option value="all">all stored</option>}
        {[...own, ...WINDOWS].map((name) => <option key={name} value={name}>last {name}</option>)}
        <option value="fixed">from … to …</option>
      </select>
      <button type="button" aria-label="the range before" title="the range before: [" onClick={() => moveRange(route, -1)}>‹</button>
      <button type="button" aria-label="the range after" title="the range after: ]" onClick={() => moveRange(route, 1)}
        disabled={value !== 'fixed'}>›</button>
      {value !== 'fixed' && value !== 'wrong' && (
        <button type="button" aria-pressed={live} title="live: l" onClick={() => setLive(!live)}>{live ? '● live' : '○ not live'}</button>
      )}
      <dialog ref={dialog} aria-label="Range">
        <Fixed key={location.hash} route={route} range={range} close={() => dialog.current?.close()} />
      </dialog>
    </>
  )
}

function Fixed({ route, range, close }: { route: Route; range: Range | string; close: () => void }) {
  const { zone } = useShared()
  const now = Date.now()
  const [from, to] = typeof range === 'string' || range.kind === 'all' ? [now - HOUR_MS, now]
    : range.kind === 'fixed' ? [Date.parse(range.from), Date.parse(range.to)] : [now - range.ms, now]
  const [texts, setTexts] = useState({ from: fieldOf(from, zone), to: fieldOf(to, zone) })
  const [problem, setProblem] = useState('')
  const choose = (event: Event) => {
    event.preventDefault()
    const [first, last] = [parseField(texts.from, zone), parseField(texts.to, zone)]
    if (first === null || last === null) return setProblem(`${first === null ? 'from' : 'to'}: is no time in ${zone}`)
    if (first >= last) return setProblem('from: is not before to')
    if (route.page === 'missing') return
    close()
    const chosen = { from: new Date(first).toISOString(), to: new Date(last).toISOString() }
    go(address(route.page, route.id, route.params.with({ window: null, cursor: null, ...chosen })))
  }
  return (
    <form class="fixed-range" onSubmit={choose}>
      {(['from', 'to'] as const).map((name) => (
        <label key={name}>{name} <input type="datetime-local" step="1" required value={texts[name]}
          onInput={(event) => setTexts({ ...texts, [name]: event.currentTarget.value })} /></label>
      ))}
      <p class="dim">in {zone}, {offset(now, zone)}</p>
      {problem && <p class="note error" role="alert">{plain(problem)}</p>}
      <div class="bar"><button type="submit">show</button><button type="button" onClick={close}>cancel</button></div>
    </form>
  )
}

const HOUR_MS = parseWindow('1h')!
