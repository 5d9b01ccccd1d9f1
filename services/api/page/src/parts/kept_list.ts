// What the list of traces showed and where it was left, so that Back finds it as it was.

import type { TracePage } from '../api/types'
import type { Params } from '../core/params'
import { SPAN_PARAMS } from '../core/spanstate'

/** *params* without those of the page of a trace. */
export function listParams(params: Params): Params {
  return SPAN_PARAMS.reduce<Params>((left, name) => left.without(name), params)
}

/** The parameters that decide which traces are listed, as text. */
export function listKey(params: Params): string {
  return JSON.stringify([...listParams(params)])
}

let kept: { key: string; page: TracePage } | null = null

/** Remembers what the list shows, for as long as the document lives. */
export function keepList(params: Params, page: TracePage): void {
  kept = { key: listKey(params), page }
}

/** What the list showed last, if it was with these parameters. */
export function keptList(params: Params): TracePage | null {
  return kept?.key === listKey(params) ? kept.page : null
}

/** Where a list was left: the trace that was opened and how far the page was scrolled. */
type Left = { id: string; y: number }

/** Writes into the history that the list was left through the trace *id*, so that Back finds the place. */
export function leaveList(id: string): void {
  history.replaceState({ ...history.state, list: { id, y: scrollY } satisfies Left }, '')
}

/** Where the list of this entry of the history was left; null = it was not. */
export function leftAt(): Left | null {
  const left: unknown = history.state?.list
  return left && typeof left === 'object' && 'id' in left && 'y' in left ? (left as Left) : null
}
