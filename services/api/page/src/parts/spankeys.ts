// What the keys do in a tree of spans.

import { moved, zoomed } from '../core/layout'
import { isFailed } from '../core/measures'
import { foldedTo, idOf, most, unfolded, viewOf, type Shown, type Tab } from '../core/spanstate'
import { atDepth, nextMatch } from '../core/tree'
import { lanesOf } from '../core/lanes'
import { useKeys } from './app'
import type { SpanActions } from './spans'
import { ROW_HEIGHT } from './spanrow'

type Given = {
  actions: SpanActions
  /** What is shown at this moment. */
  show: () => Shown
  hits: ReadonlySet<number>
  tab: Tab | null
  grid: { current: HTMLDivElement | null }
  isByDepth: boolean
  reload: () => void
}

/** Selects the next row, in the order of the tree, for which *matches* holds. */
export function jump(actions: SpanActions, step: 1 | -1, matches: (index: number) => boolean): void {
  const { tree } = actions
  const next = nextMatch(tree.order, tree.order.indexOf(actions.selected()), step, matches)
  if (next >= 0) actions.select(next, false)
}

/** Selects the row without children that is the dearest, or the slowest. */
export function leader(actions: SpanActions, what: 'cost' | 'time'): void {
  const found = most(actions.tree, (row) => (what === 'cost' ? (row.counted ? row.cost_usd : null) : row.duration_ms))
  if (found >= 0) actions.select(found, false)
}

/** Shows *depth* levels; the selection moves up to the level that is still shown. */
export function foldTo(actions: SpanActions, depth: number): void {
  const { tree, change } = actions
  const above = atDepth(tree, actions.selected(), depth)
  change((before) => foldedTo(before, depth).with({ span: idOf(tree.rows[above]!) }), false)
}

/** Switches a parameter on and off. */
export function flip(actions: SpanActions, name: string, value: string): void {
  actions.change((before) => (before.get(name) === value ? before.without(name) : before.with({ [name]: value })), true)
}

/** Zooms by *factor* around the middle, or moves what is seen by *part* of its length. */
export function zoomBy(actions: SpanActions, factor: number, part = 0): void {
  const { params, whole, zoom } = actions
  const view = viewOf(params(), whole)
  zoom(part ? moved(view, part, whole) : zoomed(view, factor, (view.from + view.to) / 2, whole))
}

export function useSpanKeys({ actions, show, hits, tab, grid, isByDepth, reload }: Given): void {
  const { tree, change } = actions
  useKeys('trace', (action) => {
    const selected = actions.selected()
    if (action.startsWith('depth:')) return foldTo(actions, Number(action.slice(6))), true
    if (isByDepth && inLanes(actions, selected, action)) return true
    const { rows, closed, placeOf } = show()
    const at = placeOf.get(selected) ?? 0
    const screen = Math.max(1, Math.floor((grid.current?.clientHeight ?? 0) / ROW_HEIGHT) - 2)
    const to = (position: number) => (actions.select(rows[Math.min(Math.max(position, 0), rows.length - 1)]!, false), true)
    switch (action) {
      case 'down': return to(at + 1)
      case 'up': return to(at - 1)
      case 'first': return to(0)
      case 'last': return to(rows.length - 1)
      case 'pageDown': return to(at + screen)
      case 'pageUp': return to(at - screen)
      case 'open': return actions.open(selected), true
      case 'right': {
        if (closed.has(selected) || tree.rows[selected]!.hidden) return actions.toggle(selected), true
        const [child] = tree.children[selected]!
        return child === undefined ? true : (actions.select(child, false), true)
      }
      case 'left': {
        if (!closed.has(selected) && tree.children[selected]!.length) return actions.toggle(selected), true
        return tree.parent[selected]! < 0 ? true : (actions.select(tree.parent[selected]!, false), true)
      }
      case 'foldAll': return foldTo(actions, 1), true
      case 'unfoldAll': return change(unfolded, false), true
      case 'nextError': return jump(actions, 1, (index) => isFailed(tree.rows[index]!)), true
      case 'previousError': return jump(actions, -1, (index) => isFailed(tree.rows[index]!)), true
      case 'nextHit': return jump(actions, 1, (index) => hits.has(index)), true
      case 'previousHit': return jump(actions, -1, (index) => hits.has(index)), true
      case 'dearest': return leader(actions, 'cost'), true
      case 'slowest': return leader(actions, 'time'), true
      case 'critical': return flip(actions, 'path', 'critical'), true
      case 'byDepth': return flip(actions, 'by', 'depth'), true
      case 'zoom': return actions.zoomToRow(selected), true
      case 'zoomIn': return zoomBy(actions, 0.5), true
      case 'zoomOut': return zoomBy(actions, 2), true
      case 'earlier': return zoomBy(actions, 1, -0.5), true
      case 'later': return zoomBy(actions, 1, 0.5), true
      case 'whole': return change((before) => before.without('zoom'), false), true
      case 'refresh': return reload(), true
      case 'close':
        if (document.activeElement instanceof HTMLInputElement) return grid.current?.focus(), true
        if (tab) return actions.close(), true
        return false
      default: return false
    }
  })
}

/** By depth, up and down lead to the parent and the first child, left and right along the lane. */
function inLanes(actions: SpanActions, selected: number, action: string): boolean {
  const { tree, select } = actions
  const lane = () => lanesOf(tree)[tree.level[selected]!]!
  const along = (step: number) => {
    const rows = lane()
    select(rows[Math.min(Math.max(rows.indexOf(selected) + step, 0), rows.length - 1)]!, false)
    return true
  }
  switch (action) {
    case 'down': return select(tree.children[selected]![0] ?? selected, false), true
    case 'up': return select(tree.parent[selected]! < 0 ? selected : tree.parent[selected]!, false), true
    case 'right': return along(1)
    case 'left': return along(-1)
    case 'first': return along(-Infinity)
    case 'last': return along(Infinity)
    default: return false
  }
}
