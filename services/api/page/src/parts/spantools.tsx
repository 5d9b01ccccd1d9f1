// The tools above a tree of spans: search, jumps, folds, zoom and switches; and the path of the selected span.

import { duration, exactCount, plain } from '../core/format'
import type { View } from '../core/layout'
import { isFailed, type Stretch } from '../core/measures'
import type { Params } from '../core/params'
import { depthOf, unfolded, type Tab } from '../core/spanstate'
import { pathOf, type Tree } from '../core/tree'
import { flip, foldTo, jump, leader, zoomBy } from './spankeys'
import type { SpanActions } from './spans'

type Props = {
  actions: SpanActions
  params: Params
  hits: ReadonlySet<number>
  idle: readonly Stretch[]
  view: View
  selected: number
  tab: Tab | null
}

export function SpanTools({ actions, params, hits, idle, view, selected, tab }: Props) {
  const { tree, whole, change } = actions
  const find = params.get('find') ?? ''
  const failed = tree.rows.reduce((sum, row) => sum + (isFailed(row) ? 1 : 0), 0)
  const isWhole = view.from <= whole.from && view.to >= whole.to
  const quiet = idle.reduce((sum, stretch) => sum + stretch.to - stretch.from, 0)
  const isHit = (index: number) => hits.has(index)
  const button = (text: string, title: string, act: () => void, pressed?: boolean) => (
    <button type="button" title={title} aria-label={/^[^a-z]+$/i.test(text) ? title : undefined} aria-pressed={pressed} onClick={act}>{text}</button>
  )
  return (
    <div class="bar tools-of-spans">
      <span class="group">
        <label for="filter" class="dim">find</label>
        <input id="filter" size={14} value={find} placeholder="name, model, id" autocomplete="off"
          onInput={(event) => {
            const text = event.currentTarget.value
            change((before) => (text ? before.with({ find: text }) : before.without('find')), false)
          }}
          onKeyDown={(event) => {
            if (event.key === 'Enter') jump(actions, event.shiftKey ? -1 : 1, isHit)
          }} />
        {find.trim() && <span role="status">{placeOf(hits, selected)}</span>}
        {find.trim() && hits.size > 0 && button('↑', 'previous hit', () => jump(actions, -1, isHit))}
        {find.trim() && hits.size > 0 && button('↓', 'next hit', () => jump(actions, 1, isHit))}
      </span>
      <span class="group">
        {failed > 0 && button(`✕ ${exactCount(failed)} failed`, 'next span that failed', () => jump(actions, 1, (index) => isFailed(tree.rows[index]!)))}
        {button('dearest', 'the dearest span', () => leader(actions, 'cost'))}
        {button('slowest', 'the slowest span', () => leader(actions, 'time'))}
      </span>
      <span class="group">
        {button('fold', 'fold all', () => foldTo(actions, 1))}
        {(depthOf(params) !== null || params.has('folded')) && button('unfold', 'unfold all', () => change(unfolded, false))}
        {button('by depth', 'one lane for each level', () => flip(actions, 'by', 'depth'), params.get('by') === 'depth')}
        {button('critical path', 'outline what decided how long the trace took', () => flip(actions, 'path', 'critical'), params.get('path') === 'critical')}
        {(idle.length > 0 || params.get('idle') === 'compressed') &&
          button(`${duration(quiet)} idle, compress`, 'stretches in which no call runs', () => flip(actions, 'idle', 'compressed'), params.get('idle') === 'compressed')}
        {button('by name', 'statistics of the spans by name', () => flip(actions, 'names', 'shown'), params.get('names') === 'shown')}
      </span>
      <span class="group">
        {button('+', 'zoom in', () => zoomBy(actions, 0.5))}
        {button('−', 'zoom out', () => zoomBy(actions, 2))}
        {!isWhole && button('whole trace', 'show the whole trace', () => change((before) => before.without('zoom'), false))}
        {!isWhole && <span class="dim">{duration(view.from)} to {duration(view.to)}</span>}
        {!tab && button('details', 'open the selected span', () => actions.open(selected))}
      </span>
    </div>
  )
}

/** `3/17`: which of the hits is selected; the number of hits if none is. */
function placeOf(hits: ReadonlySet<number>, selected: number): string {
  if (!hits.has(selected)) return hits.size === 1 ? '1 hit' : `${exactCount(hits.size)} hits`
  let at = 0
  // A set keeps the order in which it was filled: that of the rows from top to bottom.
  for (const index of hits) {
    at += 1
    if (index === selected) break
  }
  return `${exactCount(at)}/${exactCount(hits.size)}`
}

/** Most names of a path that are shown; the middle of a longer one is left out. */
const MOST_NAMES = 6

/** The way from the root to the selected row. */
export function Breadcrumb({ tree, index, select }: { tree: Tree; index: number; select: (index: number) => void }) {
  const path = pathOf(tree, index)
  const left = path.length - MOST_NAMES
  const shown = left > 0 ? [...path.slice(0, 2), ...path.slice(2 - MOST_NAMES)] : path
  const name = (at: number) => plain(tree.rows[at]!.name).slice(0, 60) || '(no name)'
  return (
    <nav class="bar dim path" aria-label="Path of the selected span">
      {shown.map((at, position) => (
        <span key={at}>
          {left > 0 && position === 2 && `… ${exactCount(left)} more › `}
          {position < shown.length - 1
            ? <><button type="button" onClick={() => select(at)}>{name(at)}</button> ›</>
            : <span aria-current="true">{name(at)}</span>}
        </span>
      ))}
    </nav>
  )
}
