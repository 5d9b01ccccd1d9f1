// Parameters of an address that change often: they are in force at once, and in the address bar a moment later.

import { useCallback, useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks'
import type { Params } from '../core/params'
import { address, type Route } from '../core/route'
import { go } from './app'

/** Changes parameters. A choice is a new entry of the history; moving and typing replace the current one. */
export type Change = (next: (params: Params) => Params, push: boolean) => void
export type Live = { params: Params; newest: () => Params; change: Change }

/** A browser takes about 20 changes of an address a second and ignores the others, so a key that is held down is too fast. */
const WRITE_MS = 120

/** The parameters of *route*, which `change` changes. `newest` are those of now: keys can come faster than drawings. */
export function useLiveParams(route: Route & { page: 'trace' | 'session' }): Live {
  const { page, id } = route
  const [params, set] = useState(route.params)
  const current = useRef(route.params)
  const written = useRef(address(page, id, route.params))
  const timer = useRef<ReturnType<typeof setTimeout> | null>(null)
  const write = useCallback((push: boolean) => {
    if (timer.current !== null) clearTimeout(timer.current)
    timer.current = null
    written.current = address(page, id, current.current)
    go(written.current, !push)
  }, [page, id])
  useEffect(() => () => {
    if (timer.current !== null) clearTimeout(timer.current)
  }, [])
  // At once, not in an effect after the next picture: by then the next address may be written, this one would look like
  // one of another, and what was typed meanwhile would be replaced by it.
  useLayoutEffect(() => {
    const given = address(page, id, route.params)
    if (given === written.current) return
    // The history was moved through, or another address was written.
    if (timer.current !== null) clearTimeout(timer.current)
    timer.current = null
    written.current = given
    current.current = route.params
    set(route.params)
  }, [page, id, route.params])
  const change = useCallback((next: (params: Params) => Params, push: boolean) => {
    const before = current.current
    const after = next(before)
    if (push && timer.current !== null) write(false)
    current.current = after
    set(after)
    if (address(page, id, after) === written.current) return
    if (push) write(true)
    else timer.current ??= setTimeout(() => write(false), WRITE_MS)
  }, [page, id, write])
  return { params, newest: useCallback(() => current.current, []), change }
}
