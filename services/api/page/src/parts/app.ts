// What every page uses: the address, the settings of this browser, and answers that follow them.

import { createContext } from 'preact'
import { useCallback, useContext, useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks'
import { ApiError, Newest, type Options } from '../api/client'
import type { About } from '../api/types'
import { actionOf, type Action, type Context } from '../core/keys'
import { address, parseRoute, type Route } from '../core/route'
import { isZone } from '../core/time'

export type Theme = 'auto' | 'light' | 'dark'
/**
 * What every page shares: what the server has, the zone of shown times, a way to tell something in the status line, the
 * chosen theme, whether the page is live, and after how many milliseconds a live answer is asked anew (null = it is not).
 */
export type Shared = {
  about: About | null
  zone: string
  theme: Theme
  say: (text: string) => void
  live: boolean
  setLive: (live: boolean) => void
  refreshMs: number | null
}
export const SharedContext = createContext<Shared>({
  about: null, zone: 'UTC', theme: 'auto', say: () => undefined, live: true, setLive: () => undefined, refreshMs: null,
})

export function useShared(): Shared {
  return useContext(SharedContext)
}

/** Goes to an address. A choice is a new entry of the history; typing and moving replace the current one. */
export function go(hash: string, replace = false): void {
  if (hash === location.hash) return
  if (replace) history.replaceState(history.state, '', hash)
  else history.pushState(null, '', hash)
  dispatchEvent(new HashChangeEvent('hashchange'))
}

/** Shows the time between two instants; `z` goes back to what was shown before. */
export function zoomTo(route: Route, from: number, to: number): void {
  if (route.page === 'missing') return
  const range = { window: null, from: new Date(from).toISOString(), to: new Date(to).toISOString(), cursor: null }
  const before = location.hash
  go(address(route.page, route.id, route.params.with(range)))
  history.replaceState({ ...history.state, zoomedFrom: before }, '')
}

/** Undoes the last `zoomTo`; false = there was none. */
export function undoZoom(): boolean {
  const before: unknown = history.state?.zoomedFrom
  if (typeof before !== 'string') return false
  go(before)
  return true
}

export function useRoute(): Route {
  const [route, set] = useState(() => parseRoute(location.hash))
  useEffect(() => {
    const changed = () => set(parseRoute(location.hash))
    addEventListener('hashchange', changed)
    addEventListener('popstate', changed)
    return () => {
      removeEventListener('hashchange', changed)
      removeEventListener('popstate', changed)
    }
  }, [])
  return route
}

/** A setting that this browser keeps; a value that is none of its own counts as the default. */
export function useKept(name: string, otherwise: string, isValid: (value: string) => boolean): [string, (value: string) => void] {
  const [value, set] = useState(() => {
    const kept = localStorage.getItem(name)
    return kept !== null && isValid(kept) ? kept : otherwise
  })
  const keep = useCallback((next: string) => {
    localStorage.setItem(name, next)
    set(next)
  }, [name])
  return [value, keep]
}

export const localZone = (): string => Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC'
export const isShownZone = (zone: string): boolean => zone === 'local' || isZone(zone)

export type Answer<T> = {
  data: T | null
  error: ApiError | null
  /** Why the page waits for a part of the server; "" = it does not. */
  waiting: string
  loading: boolean
  reload: () => void
}

/**
 * What *ask* returns, asked anew when *key* changes. The last data stays until the next comes; null = ask nothing.
 *
 * With *refresh* it is asked again and again while the page is live and seen.
 */
export function useAnswer<T>(
  key: string | null, ask: (options: Options) => Promise<T>, { refresh = false }: { refresh?: boolean } = {},
): Answer<T> {
  const { refreshMs } = useShared()
  const [state, set] = useState<{ key: string | null; data: T | null; error: ApiError | null; waiting: string; loading: boolean }>(
    { key: null, data: null, error: null, waiting: '', loading: true },
  )
  const newest = useRef(new Newest())
  const asking = useRef(ask)
  asking.current = ask
  const load = useCallback((quietly = false) => {
    set((before) => ({ ...before, loading: before.loading || !quietly, waiting: '' }))
    const waiting = (seconds: number, why: string) =>
      set((before) => ({ ...before, waiting: `${why}; asking again in ${seconds} s` }))
    void newest.current
      .run((signal) => asking.current({ signal, waiting }))
      .then(
        (data) => data !== null && set({ key, data, error: null, waiting: '', loading: false }),
        (error: unknown) => {
          if (!(error instanceof ApiError)) throw error
          if (error.status === 401) logIn()
          set((before) => ({ ...before, error, waiting: '', loading: false }))
        },
      )
  }, [key])
  useEffect(() => {
    const running = newest.current
    if (key === null) return
    load()
    return () => running.stop()
  }, [key, load])
  useEffect(() => {
    if (!refresh || refreshMs === null || key === null) return
    let asked = Date.now()
    const again = () => {
      // A request that takes longer is waited for, and then the server gets the same pause.
      if (newest.current.isRunning) asked = Date.now()
      if (document.hidden || Date.now() - asked < refreshMs) return
      asked = Date.now()
      load(true)
    }
    // Every second, so that a tab that is seen again after a while is asked for at once.
    const timer = setInterval(again, 1000)
    return () => clearInterval(timer)
  }, [key, load, refresh, refreshMs])
  return { ...state, reload: () => load() }
}

/** Opens the login, which comes back to the address that is shown now. */
export function logIn(): void {
  if (parseRoute(location.hash).page !== 'login') go(address('login', '', [['next', location.hash || '#/']]), true)
}

/** Calls *act* for every key that means something on the page; it returns false if it did nothing. */
export function useKeys(context: Context, act: (action: Action, event: KeyboardEvent) => boolean): void {
  const acting = useRef(act)
  acting.current = act
  // Before the browser draws: what is seen hears its keys. An effect runs up to 100 ms later, and keys were lost.
  useLayoutEffect(() => {
    let pending = ''
    const pressed = (event: KeyboardEvent) => {
      const target = event.target as Element | null
      const inField = !!target?.closest('input, select, textarea, dialog')
      const key = { key: event.key, ctrl: event.ctrlKey, alt: event.altKey, meta: event.metaKey, inField }
      const action = actionOf(key, context, pending)
      pending = event.key === 'g' && !inField && !pending ? 'g' : ''
      // A link or a button that has the focus takes Enter itself.
      if (action === 'open' && target?.closest('a, button')) return
      if (action && acting.current(action, event)) event.preventDefault()
    }
    addEventListener('keydown', pressed)
    return () => removeEventListener('keydown', pressed)
  }, [context])
}

/** Moves the focus to the heading: what had it may not be in the list that comes. Returns true, as a key that did something. */
export function toHeading(): true {
  document.querySelector<HTMLElement>('h1')?.focus({ preventScroll: true })
  return true
}

/** Sets the title, and moves the focus to the heading, as a new document would do. */
export function useTitle(title: string, key: string): (heading: HTMLElement | null) => void {
  const heading = useRef<HTMLElement | null>(null)
  useEffect(() => {
    document.title = `${title} · tokentrace`
  }, [title])
  // Before the browser draws: later it would take the focus from the field in which one types by then.
  useLayoutEffect(() => heading.current?.focus({ preventScroll: true }), [key])
  return useCallback((element: HTMLElement | null) => {
    heading.current = element
  }, [])
}
