/*
 * The spans of a trace or of a session: tools, minimap, path of the selection, waterfall or lanes, statistics, and a drawer.
 *
 * `tree` is `treeOf(rows)`. `whole` is the time that is shown without a zoom, milliseconds since the start. `now` is where
 * open spans end for now. What is shown is in the parameters of `live` (`useLiveParams` of parts/address.ts), whose names
 * are `SPAN_PARAMS`. `drawer` makes what is shown of a selected row. `load` is called for a row with `hidden` spans. The
 * keys of the context `trace` work while it is there; only one may be on a page.
 */

import type { ComponentChildren } from 'preact'
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from 'preact/hooks'
import { layout, type View } from '../core/layout'
import type { Params } from '../core/params'
import { criticalPath, idleOf, sumsBelow } from '../core/measures'
import { hitsOf, idOf, revealed, rowOf, shower, tabOf, toggled, viewOf, zoomedTo, type Tab } from '../core/spanstate'
import type { Row, Tree } from '../core/tree'
import type { Change, Live } from './address'
import { ByNames } from './bynames'
import { Lanes } from './lanes'
import { Minimap } from './minimap'
import { useSpanKeys } from './spankeys'
import { costOf } from './spanrow'
import { Breadcrumb, SpanTools } from './spantools'
import { Waterfall } from './waterfall'

export type DrawerProps = { row: Row; below: readonly [string, string] | null; tab: Tab; focus: boolean; choose: (tab: Tab) => void; close: () => void }
export type SpansProps = {
  tree: Tree
  whole: View
  now: number
  label: string
  live: Live
  drawer: (props: DrawerProps) => ComponentChildren
  reload: () => void
  load?: (row: Row) => void
  loading?: ReadonlySet<number>
}
/** Stretches of less than this part of the trace are not offered to be compressed. */
const LEAST_IDLE = 0.03

/** What the selection is and what is shown, for those who change it. */
export type SpanActions = {
  tree: Tree
  whole: View
  /** The newest parameters. */
  params: () => Params
  /** The selected row, by the newest parameters. */
  selected: () => number
  change: Change
  /** Selects a row and unfolds what hides it; a choice is a new entry of the history. */
  select: (index: number, isChoice: boolean) => void
  toggle: (index: number) => void
  open: (index: number) => void
  close: () => void
  zoom: (view: View) => void
  zoomToRow: (index: number) => void
}

export function Spans({ tree, whole, now, label, live, drawer, reload, load, loading }: SpansProps) {
  const { params, newest, change } = live
  const show = useMemo(() => shower(tree), [tree])
  const sums = useMemo(() => sumsBelow(tree), [tree])
  const shown = show(params)
  const selectedBy = useCallback((given: typeof params) => {
    const found = rowOf(tree, given.get('span') ?? '')
    return found >= 0 ? found : (tree.order[0] ?? 0)
  }, [tree])
  const selected = selectedBy(params)
  const grid = useRef<HTMLDivElement | null>(null)
  const [focusDrawer, setFocusDrawer] = useState(false)
  const tab = tabOf(params)
  const find = params.get('find') ?? ''
  const hits = useMemo(() => hitsOf(tree, find), [tree, find])
  const isOpen = useMemo(() => tree.rows.some((row) => row.status === 'pending'), [tree])
  const clock = isOpen ? now : 0
  const idle = useMemo(() => idleOf(tree, whole, now, (whole.to - whole.from) * LEAST_IDLE), [tree, whole, clock])
  const isPathShown = params.get('path') === 'critical'
  const path = useMemo(() => (isPathShown ? criticalPath(tree, now) : null), [tree, isPathShown, clock])
  const zoomed = params.get('zoom')
  const isSqueezed = params.get('idle') === 'compressed'
  const view = useMemo(() => viewOf(params, whole), [zoomed, whole])
  const axis = useMemo(() => layout(view, isSqueezed ? idle : [], 5), [view, idle, isSqueezed])
  const isByDepth = params.get('by') === 'depth'
  const drawnByDepth = useRef(isByDepth)
  useLayoutEffect(() => {
    // The table that had the focus is gone; the one that replaces it takes it over.
    if (drawnByDepth.current !== isByDepth && document.activeElement === document.body) grid.current?.focus()
    drawnByDepth.current = isByDepth
  }, [isByDepth])

  useEffect(() => {
    // An address can name a span that is folded away.
    change((before) => revealed(before, tree, show(before).closed, selectedBy(before)), false)
  }, [tree, selected, change, show, selectedBy])

  const actions: SpanActions = useMemo(() => {
    const own = (before: typeof params, index: number) =>
      revealed(before, tree, show(before).closed, index).with({ span: idOf(tree.rows[index]!) })
    const zoom = (next: View) => change((before) => zoomedTo(before, next, whole), false)
    return {
      tree, whole, change, zoom, params: newest,
      selected: () => selectedBy(newest()),
      select: (index, isChoice) => tree.rows[index] && change((before) => own(before, index), isChoice),
      toggle: (index) => {
        const row = tree.rows[index]!
        if (row.hidden) return load?.(row)
        change((before) => {
          const isClosed = show(before).closed.has(index)
          const after = toggled(before, tree, index, isClosed)
          // The selection must not be hidden: it moves up to the row that hides it.
          for (let at = selectedBy(before); !isClosed && at >= 0; at = tree.parent[at]!) if (at === index) return after.with({ span: idOf(row) })
          return after
        }, false)
      },
      open: (index) => {
        setFocusDrawer(true)
        change((before) => own(before, index).with({ tab: tabOf(before) ?? 'receipt' }), true)
      },
      close: () => {
        setFocusDrawer(false)
        change((before) => before.without('tab'), true)
        grid.current?.focus()
      },
      zoomToRow: (index) => {
        const row = tree.rows[index]!
        const length = Math.max(row.duration_ms ?? whole.to - row.start_ms, (whole.to - whole.from) / 1e6)
        zoom({ from: row.start_ms, to: row.start_ms + length })
      },
    }
  }, [tree, whole, change, show, selectedBy, newest, load])
  useSpanKeys({ actions, show: () => show(newest()), hits, tab, grid, isByDepth, reload })
  const choose = useCallback((index: number) => actions.select(index, true), [actions])

  if (!tree.rows.length) return <p>No spans.</p>
  return (
    <>
      <SpanTools actions={actions} params={params} hits={hits} idle={idle} view={view} selected={selected} tab={tab} />
      <Minimap tree={tree} whole={whole} view={view} now={now} zoom={actions.zoom} />
      <Breadcrumb tree={tree} index={selected} select={choose} />
      <div class={tab ? 'trace open' : 'trace'}>
        {isByDepth ? (
          <Lanes tree={tree} selected={selected} axis={axis} whole={whole} now={now} grid={grid} label={label}
            select={choose} open={actions.open} zoom={actions.zoom} />
        ) : (
          <Waterfall tree={tree} sums={sums} shown={shown} selected={selected} axis={axis} whole={whole} now={now} grid={grid} label={label}
            hits={hits} path={path} {...(loading ? { loading } : {})} select={choose} toggle={actions.toggle} open={actions.open}
            zoomTo={actions.zoomToRow} zoom={actions.zoom} />
        )}
        {tab && drawer({
          row: tree.rows[selected]!, below: tree.below[selected] ? costOf(tree, sums, selected) : null, tab, focus: focusDrawer, close: actions.close,
          choose: (next) => { setFocusDrawer(true); change((before) => before.with({ tab: next }), true) },
        })}
      </div>
      {params.get('names') === 'shown' && <ByNames tree={tree} select={choose} />}
    </>
  )
}

