// The keys of a list of links: they move the focus from row to row.

import type { Action, Context } from '../core/keys'
import { useKeys } from './app'

/**
 * Lets the keys of a list move the focus over the links *selector* in *body*, and its key for refreshing call *refresh*.
 * Other keys of *context* are for *more*; it returns false if it did nothing.
 */
export function useListKeys(
  body: { current: HTMLElement | null }, selector: string, refresh: () => void, context: Context = 'list', more: (action: Action) => boolean = () => false,
): void {
  const move = (step: (at: number, last: number) => number) => {
    const links = [...(body.current?.querySelectorAll<HTMLElement>(selector) ?? [])]
    if (!links.length) return false
    // The focus may be on another cell of a row.
    const row = document.activeElement?.closest('tr')
    const at = row ? links.findIndex((link) => link.closest('tr') === row) : -1
    links[Math.min(Math.max(step(at, links.length - 1), 0), links.length - 1)]!.focus()
    return true
  }
  useKeys(context, (action) => {
    if (action === 'down') return move((at) => at + 1)
    if (action === 'up') return move((at) => at - 1)
    if (action === 'first') return move(() => 0)
    if (action === 'last') return move((_, last) => last)
    if (action === 'refresh') return refresh(), true
    return more(action)
  })
}
