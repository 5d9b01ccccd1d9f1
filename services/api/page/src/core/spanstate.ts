// What of a tree of spans is shown, as the parameters of an address say it: selection, folds, zoom, search and switches.

import type { View } from './layout'
import type { Params } from './params'
import { closedBelow, isHidden, isLoaded, visible, type Row, type Tree } from './tree'

export const TABS = ['receipt', 'messages', 'attributes', 'scores', 'json'] as const
export type Tab = (typeof TABS)[number]
/** Parameters of an address that say what of a trace is shown; all others belong to the list that it was opened from. */
export const SPAN_PARAMS = ['span', 'tab', 'fold', 'folded', 'unfolded', 'zoom', 'find', 'by', 'path', 'idle', 'names'] as const

/** The name of a row in an address. */
export function idOf(row: Row): string {
  return row.trace_id === undefined ? row.span_id : `${row.trace_id}/${row.span_id}`
}

const ids = new WeakMap<Tree, Map<string, number>>()

/** The row that an address names; -1 = it is not among the rows. */
export function rowOf(tree: Tree, id: string): number {
  let found = ids.get(tree)
  if (!found) {
    found = new Map()
    for (const [index, row] of tree.rows.entries()) if (!found.has(idOf(row))) found.set(idOf(row), index)
    ids.set(tree, found)
  }
  return found.get(id) ?? -1
}

/** The number of levels that `fold=depth:2` shows; null = all of them. */
export function depthOf(params: Params): number | null {
  const depth = /^depth:([1-9]\d{0,5})$/.exec(params.get('fold') ?? '')
  return depth ? Number(depth[1]) : null
}

export type Shown = {
  /** Rows whose children are not shown. */
  closed: ReadonlySet<number>
  /** The shown rows from top to bottom. */
  rows: readonly number[]
  /** Row -> its place among the shown ones. */
  placeOf: ReadonlyMap<number, number>
}

/** Makes what *params* show of *tree*; the last result is kept, because a moved selection changes nothing of it. */
export function shower(tree: Tree): (params: Params) => Shown {
  let [lastKey, last]: [string | null, Shown | null] = [null, null]
  return (params) => {
    const [folded, unfolded] = [params.all('folded'), params.all('unfolded')]
    const key = JSON.stringify([params.get('fold'), folded, unfolded])
    if (last && key === lastKey) return last
    const depth = depthOf(params)
    const closed = depth === null ? new Set<number>() : closedBelow(tree, depth)
    for (const id of folded) closed.add(rowOf(tree, id))
    for (const id of unfolded) closed.delete(rowOf(tree, id))
    closed.delete(-1)
    const rows = visible(tree, closed)
    lastKey = key
    last = { closed, rows, placeOf: new Map(rows.map((index, place) => [index, place])) }
    return last
  }
}

/** *params* with row *index* folded or unfolded. */
export function toggled(params: Params, tree: Tree, index: number, isClosed: boolean): Params {
  const id = idOf(tree.rows[index]!)
  const left = params.without('folded', id).without('unfolded', id)
  const depth = depthOf(left)
  const isClosedByDepth = depth !== null && tree.level[index]! >= depth - 1
  if (isClosed) return isClosedByDepth ? left.plus('unfolded', id) : left
  return isClosedByDepth ? left : left.plus('folded', id)
}

/** More closed rows than this above one row are not opened singly: everything is unfolded, or the address gets too long. */
const MOST_OPENED = 50

/** *params* with the rows unfolded that hide row *index*. */
export function revealed(params: Params, tree: Tree, closed: ReadonlySet<number>, index: number): Params {
  if (!isHidden(tree, closed, index)) return params
  const above: number[] = []
  for (let at = tree.parent[index]!; at >= 0; at = tree.parent[at]!) if (closed.has(at)) above.push(at)
  if (above.length > MOST_OPENED) return unfolded(params)
  return above.reduce((changed, at) => toggled(changed, tree, at, true), params)
}

/** *params* without any folds. */
export function unfolded(params: Params): Params {
  return params.without('fold').without('folded').without('unfolded')
}

/** *params* with *depth* levels shown. */
export function foldedTo(params: Params, depth: number): Params {
  return unfolded(params).with({ fold: `depth:${depth}` })
}

/** The view that `zoom=1200-3400` stands for, milliseconds; *whole* without one. */
export function viewOf(params: Params, whole: View): View {
  const found = /^(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)$/.exec(params.get('zoom') ?? '')
  if (!found) return whole
  const [from, to] = [Math.max(Number(found[1]), whole.from), Math.min(Number(found[2]), whole.to)]
  return to > from ? { from, to } : whole
}

/** *params* with *view* shown. */
export function zoomedTo(params: Params, view: View, whole: View): Params {
  const isWhole = view.from <= whole.from && view.to >= whole.to
  const shown = (ms: number) => String(Math.round(ms * 1e6) / 1e6)
  return isWhole ? params.without('zoom') : params.with({ zoom: `${shown(view.from)}-${shown(view.to)}` })
}

/** The tab of the drawer; null = the drawer is closed. */
export function tabOf(params: Params): Tab | null {
  const given = params.get('tab')
  return (TABS as readonly (string | undefined)[]).includes(given) ? (given as Tab) : null
}

/** What of the own parameters is not understood: its name and why. */
export function misunderstood(params: Params): [string, string][] {
  const wrong: [string, string][] = []
  const check = (name: string, isGood: (value: string) => boolean, what: string) => {
    const value = params.get(name)
    if (value !== undefined && !isGood(value)) wrong.push([name, `'${value}' is not ${what}`])
  }
  check('tab', (value) => (TABS as readonly string[]).includes(value), `one of ${TABS.join(', ')}`)
  check('fold', () => depthOf(params) !== null, 'depth: and a number, such as depth:2')
  check('zoom', (value) => /^\d+(\.\d+)?-\d+(\.\d+)?$/.test(value), 'two times in milliseconds, such as 1200-3400')
  check('by', (value) => value === 'depth', 'depth')
  check('path', (value) => value === 'critical', 'critical')
  check('idle', (value) => value === 'compressed', 'compressed')
  check('names', (value) => value === 'shown', 'shown')
  return wrong
}

/** The rows, from top to bottom, whose name, model, caller or id contains *text*, upper and lower case alike. */
export function hitsOf(tree: Tree, text: string): Set<number> {
  const wanted = text.trim().toLowerCase()
  if (!wanted) return new Set()
  return new Set(tree.order.filter((index) => {
    const row = tree.rows[index]!
    return `${row.name}\n${row.model ?? ''}\n${row.caller ?? ''}\n${row.span_id}`.toLowerCase().includes(wanted)
  }))
}

/** The row with the largest *value* among those without children; -1 = no such row has one. */
export function most(tree: Tree, value: (row: Row) => number | null): number {
  // A root lasts as long as all of the trace, and a roll-up has the cost of what is below it: a leaf is looked for.
  let [best, largest] = [-1, -1]
  for (const index of tree.order) {
    if (tree.children[index]!.length || !isLoaded(tree.rows[index]!)) continue
    const own = value(tree.rows[index]!)
    if (own !== null && own > largest) [best, largest] = [index, own]
  }
  return best
}
