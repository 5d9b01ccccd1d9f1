// A row of a waterfall: a span with its place in the tree, its cost, its self time, and its bar on the axis.

import { Component } from 'preact'
import { count, duration, exactCount, exactMoney, money, NONE, plain } from '../core/format'
import { bar, type Axis } from '../core/layout'
import { endOf, outside, type Below, type Stretch } from '../core/measures'
import { isLoaded, selfTime, type Row, type Tree } from '../core/tree'
import { mark } from './status'

export const ROW_HEIGHT = 28
/** Levels up to which rows are indented; deeper ones write their level. */
const MOST_INDENT = 12

export type RowProps = {
  tree: Tree
  sums: Below
  index: number
  position: number
  axis: Axis
  now: number
  isSelected: boolean
  isClosed: boolean
  isHit: boolean
  isLoading: boolean
  /** The stretches of the row on the critical path; null = it is not on it, or the path is not shown. */
  path: readonly Stretch[] | null
  select: (index: number) => void
  toggle: (index: number) => void
  open: (index: number) => void
  zoomTo: (index: number) => void
}

/** It is drawn again only if what it shows has changed: without that, scrolling costs twice the time. */
export class SpanRow extends Component<RowProps> {
  override shouldComponentUpdate(next: Readonly<RowProps>): boolean {
    const now = this.props
    return next.tree !== now.tree || next.index !== now.index || next.position !== now.position || next.axis !== now.axis ||
      next.isSelected !== now.isSelected || next.isClosed !== now.isClosed || next.isHit !== now.isHit ||
      next.isLoading !== now.isLoading || next.path !== now.path ||
      (next.now !== now.now && now.tree.rows[now.index]!.status === 'pending')
  }

  override render() {
    const { tree, sums, index, position, isSelected, isClosed, isHit, isLoading, select, toggle, open } = this.props
    const row = tree.rows[index]!
    const level = tree.level[index]!
    const below = tree.below[index]!
    const [sign, note] = noteOf(this.props)
    const name = plain(row.name) || '(no name)'
    const [cost, about] = costOf(tree, sums, index)
    return (
      <div class={`row${isHit ? ' hit' : ''}`} role="row" id={`row-${position}`} aria-rowindex={position + 2} aria-level={level + 1}
        aria-selected={isSelected} aria-expanded={below ? !isClosed : undefined}
        ref={(element) => { if (element) element.style.transform = `translateY(${position * ROW_HEIGHT}px)` }}
        onClick={() => select(index)} onDblClick={() => open(index)}>
        <span class="label" role="gridcell" title={`${name}\n${row.kind}${row.model ? ` · ${plain(row.model)}` : ''}${note ? `\n${note}` : ''}`}
          ref={(element) => { if (element) element.style.paddingLeft = `${Math.min(level, MOST_INDENT) * 12}px` }}>
          {below ? (
            <span class="twist" aria-hidden="true" onClick={(event) => { event.stopPropagation(); toggle(index) }}
              onDblClick={(event) => event.stopPropagation()}>{isClosed ? '▸' : '▾'}</span>
          ) : <span class="twist" />}
          {level > MOST_INDENT && <span class="dim" title="levels above it">{level}· </span>}
          <span class={`status-${row.status}`}>{mark(row.status)}</span>
          {name}
          {isLoading ? <span class="dim"> loading…</span> : isClosed && below > 0 && <span class="dim"> +{exactCount(below)}</span>}
          {isClosed && sums.errors[index]! > 0 && <span class="status-error"> ✕ {exactCount(sums.errors[index])}</span>}
          {sign && <span class="status-pending"> {sign}</span>}
        </span>
        <span class={`number${row.counted || below ? '' : ' dim'}`} role="gridcell" title={about}>{cost}</span>
        <span class="number self" role="gridcell" title="time that no child covers">{isLoaded(row) ? duration(selfTime(tree, index)) : NONE}</span>
        {this.lane(row)}
      </div>
    )
  }

  private lane(row: Row) {
    const { index, axis, now, path, zoomTo } = this.props
    const length = endOf(row, now) - row.start_ms
    const drawn = bar(row.start_ms, length, axis)
    const state = row.status === 'error' || row.status === 'timeout' ? 'failed' : row.status === 'abandoned' ? 'abandoned' : row.duration_ms === null ? 'unfinished' : ''
    const said = row.status === 'pending' ? 'open' : row.status === 'abandoned' ? 'never ended' : duration(row.duration_ms)
    const about = [
      `begins ${duration(row.start_ms)} after the start`, `duration: ${said}`,
      ...(row.ttft_ms === null ? [] : [`first token after ${duration(row.ttft_ms)}`]),
      ...(row.total_tokens ? [`${count(row.total_tokens)} tokens`] : []),
    ]
    const part = (from: number, to: number) => {
      const piece = bar(from, to - from, axis)
      return piece && place(piece.left, piece.width)
    }
    const first = row.ttft_ms === null ? -1 : axis.place(row.start_ms + row.ttft_ms)
    return (
      <span class="lane" role="gridcell" title={about.join('\n')}
        onDblClick={(event) => { event.stopPropagation(); zoomTo(index) }}>
        {axis.gaps.map((gap) => <span class="gap" key={gap.from} ref={place(axis.place(gap.from), axis.place(gap.to) - axis.place(gap.from))} />)}
        {drawn && <span class={`bar-of kind-${row.kind} ${state}`} ref={place(drawn.left, drawn.width)} />}
        {drawn && first >= 0 && first <= 1 && <span class="first-token" ref={place(first, null)} />}
        {path?.map((stretch) => {
          const placed = part(stretch.from, stretch.to)
          return placed && <span class="critical" key={stretch.from} ref={placed} />
        })}
        {drawn && (
          <span class={drawn.left + drawn.width > 0.8 ? 'bar-text before' : 'bar-text'} aria-hidden="true"
            ref={place(drawn.left + drawn.width > 0.8 ? drawn.left : drawn.left + drawn.width, null)}>
            {drawn.left + drawn.width > 0.8 && drawn.left < 0.2 ? '' : said}
          </span>
        )}
      </span>
    )
  }
}

/** Sets the place of an element, as parts of what it lies in. The policy of the page allows no style in markup. */
export function place(left: number, width: number | null) {
  return (element: HTMLElement | null) => {
    if (!element) return
    element.style.left = `${left * 100}%`
    if (width !== null) element.style.width = `${width * 100}%`
  }
}

/** What is unusual about the place of a row in the tree or in time: as a mark, and in words. "" = nothing is. */
function noteOf({ tree, index }: RowProps): [string, string] {
  const orphan = 'its parent is not in the trace'
  if (tree.note[index] === 'orphan') return [`(${orphan})`, orphan]
  const circle = 'its parents form a circle'
  if (tree.note[index] === 'circle') return [`(${circle})`, circle]
  const beyond = outside(tree, index)
  if (!beyond) return ['', '']
  const marks = [...(beyond.before ? [`⇤ ${duration(beyond.before)}`] : []), ...(beyond.after ? [`⇥ ${duration(beyond.after)}`] : [])]
  const words = [
    ...(beyond.before ? [`begins ${duration(beyond.before)} before its parent`] : []),
    ...(beyond.after ? [`ends ${duration(beyond.after)} after its parent`] : []),
  ]
  return [marks.join(' '), words.join(', ')]
}

/** The cost of a row, and what is to know about it: its own, or the sum of what counts in it and below it. */
export function costOf(tree: Tree, sums: Below, index: number): [string, string] {
  const row = tree.rows[index]!
  const below = tree.below[index]!
  if (!below) {
    if (row.duration_ms === null) return [NONE, 'an open span has no cost yet']
    const apart = row.counted || !row.cost_usd ? '' : '\nsums leave it out'
    return [money(row.cost_usd), `${exactMoney(row.cost_usd)}${apart}`]
  }
  const [usd, unpriced] = [sums.nusd[index]! / 1e9, sums.unpriced[index]!]
  const unknown = [
    ...(unpriced ? [`${exactCount(unpriced)} unpriced`] : []),
    ...(tree.hiddenBelow[index] ? ['not all spans below it are loaded'] : []),
  ]
  const about = `in it and below it: ${exactMoney(usd)}${unknown.length ? `\nat least, because ${unknown.join(' and ')}` : ''}`
  return [`${unknown.length ? '≥ ' : ''}${money(usd)}`, about]
}
