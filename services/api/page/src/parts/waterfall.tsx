/*
 * The rows of a tree of spans: a tree and a waterfall in one, of which only the rows in view are in the document.
 *
 * It shows rows of any source. Make `tree = treeOf(rows)` (core/tree.ts; `trace_id` in a row if they are of several traces,
 * `start_ms` from one common start), `sums = sumsBelow(tree)` (core/measures.ts), `axis = layout(view, [], 5)` and
 * `shown = shower(tree)(params)` (core/spanstate.ts), or take `<Spans>` of parts/spans.tsx, which does all of this, has the
 * keys, the minimap and the search, and keeps its state in the parameters of an address.
 */

import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks'
import './waterfall.css'
import { rowsInView, scrolledTo, zoomed, type Axis, type View } from '../core/layout'
import type { Below, Stretch } from '../core/measures'
import type { Shown } from '../core/spanstate'
import type { Tree } from '../core/tree'
import { AxisHead } from './axis'
import { ROW_HEIGHT, SpanRow } from './spanrow'

export { ROW_HEIGHT }

export type WaterfallProps = {
  tree: Tree
  /** Sums of each row, of `sumsBelow(tree)`. */
  sums: Below
  /** Which rows are shown, and which of them are folded. */
  shown: Shown
  /** Index of the selected row in the tree. */
  selected: number
  /** Where times are, of `layout`. */
  axis: Axis
  /** All of the trace, milliseconds. */
  whole: View
  /** Where open spans end for now, milliseconds since the start of the trace. */
  now: number
  /** The name of the tree for those who do not see it. */
  label: string
  /** Rows to mark as found. */
  hits?: ReadonlySet<number>
  /** Row -> its stretches on the critical path; null = it is not shown. */
  path?: ReadonlyMap<number, readonly Stretch[]> | null
  /** Rows whose children are on their way. */
  loading?: ReadonlySet<number>
  /** Called with a row that was clicked. */
  select: (index: number) => void
  /** Called to fold or unfold a row; one with `hidden` spans is to be loaded. */
  toggle: (index: number) => void
  open: (index: number) => void
  zoomTo: (index: number) => void
  zoom: (view: View) => void
  /** Gets the element that has the focus and scrolls. */
  grid: { current: HTMLDivElement | null }
}

const NONE: ReadonlySet<number> = new Set()

export function Waterfall(props: WaterfallProps) {
  const { tree, shown: { rows, closed, placeOf }, selected, axis, hits = NONE, loading = NONE, path = null } = props
  const box = props.grid
  const [place, setPlace] = useState({ top: 0, height: 600 })
  const position = placeOf.get(selected) ?? -1
  const read = () => {
    const element = box.current!
    setPlace({ top: element.scrollTop, height: Math.max(0, element.clientHeight - ROW_HEIGHT) })
  }
  useLayoutEffect(() => {
    read()
    const observer = new ResizeObserver(read)
    observer.observe(box.current!)
    return () => observer.disconnect()
  }, [box])
  useLayoutEffect(() => {
    const element = box.current!
    if (position >= 0) element.scrollTop = scrolledTo(position, element.scrollTop, element.clientHeight - ROW_HEIGHT, ROW_HEIGHT)
    read()
  }, [position, box, rows])
  const lane = useRef<HTMLDivElement>(null)
  useWheel(box, lane, props)
  const { first, end } = rowsInView(place.top, place.height, ROW_HEIGHT, rows.length)
  const isRendered = position >= first && position < end
  return (
    <div class="rows" ref={box} role="treegrid" tabIndex={0} aria-label={props.label} aria-rowcount={rows.length + 1}
      aria-activedescendant={isRendered ? `row-${position}` : undefined} onScroll={read}>
      <div class="head" role="row" aria-rowindex={1}>
        <span role="columnheader">name</span>
        <span class="number" role="columnheader" title="of a span with others below it: the sum of what counts">cost</span>
        <span class="number self" role="columnheader" title="time that no child covers">self time</span>
        <AxisHead axis={axis} whole={props.whole} zoom={props.zoom} lane={lane} />
      </div>
      <div class="space" role="rowgroup" ref={(element) => { if (element) element.style.height = `${rows.length * ROW_HEIGHT}px` }}>
        {rows.slice(first, end).map((index, offset) => (
          <SpanRow key={first + offset} tree={tree} sums={props.sums} index={index} position={first + offset} axis={axis} now={props.now}
            isSelected={index === selected} isClosed={closed.has(index) || !!tree.rows[index]!.hidden} isHit={hits.has(index)}
            isLoading={loading.has(index)} path={path?.get(index) ?? null}
            select={props.select} toggle={props.toggle} open={props.open} zoomTo={props.zoomTo} />
        ))}
      </div>
    </div>
  )
}

/** Ctrl and the wheel zoom the axis around the pointer. */
export function useWheel(
  box: { current: HTMLElement | null }, lane: { current: HTMLElement | null },
  props: { axis: Axis; whole: View; zoom: (view: View) => void },
): void {
  const current = useRef(props)
  current.current = props
  useEffect(() => {
    const element = box.current!
    const wheel = (event: WheelEvent) => {
      const area = lane.current?.getBoundingClientRect()
      if (!event.ctrlKey || !area || !area.width) return
      event.preventDefault()
      const { axis, whole, zoom } = current.current
      const at = axis.at(Math.min(1, Math.max(0, (event.clientX - area.left) / area.width)))
      zoom(zoomed(axis.view, event.deltaY > 0 ? 1.25 : 0.8, at, whole))
    }
    // Not passive, because the browser would zoom the page.
    element.addEventListener('wheel', wheel, { passive: false })
    return () => element.removeEventListener('wheel', wheel)
  }, [box, lane])
}
