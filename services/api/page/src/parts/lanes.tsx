// The spans of a trace by depth: one lane for each level. A lane is drawn on a canvas, because it may hold thousands of spans.

import { useEffect, useLayoutEffect, useMemo, useRef, useState } from 'preact/hooks'
import { duration, exactCount, plain } from '../core/format'
import { rowsInView, scrolledTo, type Axis, type View } from '../core/layout'
import { blocksOf, lanesOf, rowAt } from '../core/lanes'
import type { Tree } from '../core/tree'
import { useShared } from './app'
import { AxisHead } from './axis'
import { useDark } from './minimap'
import { ROW_HEIGHT } from './spanrow'
import { mark } from './status'
import { useWheel } from './waterfall'

type Props = {
  tree: Tree
  selected: number
  axis: Axis
  whole: View
  now: number
  label: string
  select: (index: number) => void
  open: (index: number) => void
  zoom: (view: View) => void
  grid: { current: HTMLDivElement | null }
}

export function Lanes(props: Props) {
  const { tree, selected, axis } = props
  const box = props.grid
  const lanes = useMemo(() => lanesOf(tree), [tree])
  const [seen, setSeen] = useState({ top: 0, height: 600, width: 0 })
  const lane = useRef<HTMLDivElement>(null)
  const level = tree.level[selected] ?? 0
  const read = () => {
    const element = box.current!
    setSeen({ top: element.scrollTop, height: Math.max(0, element.clientHeight - ROW_HEIGHT), width: lane.current?.clientWidth ?? 0 })
  }
  useLayoutEffect(() => {
    read()
    const observer = new ResizeObserver(read)
    observer.observe(box.current!)
    return () => observer.disconnect()
  }, [box])
  useLayoutEffect(() => {
    const element = box.current!
    element.scrollTop = scrolledTo(level, element.scrollTop, element.clientHeight - ROW_HEIGHT, ROW_HEIGHT)
    read()
  }, [level, box, lanes])
  useWheel(box, lane, props)
  const { first, end } = rowsInView(seen.top, seen.height, ROW_HEIGHT, lanes.length)
  return (
    <div class="rows lanes" ref={box} role="grid" tabIndex={0} aria-label={`${props.label}, by depth`} aria-rowcount={lanes.length + 1}
      aria-activedescendant={level >= first && level < end ? `row-${level}` : undefined} onScroll={read}>
      <div class="head" role="row" aria-rowindex={1}>
        <span role="columnheader">depth</span>
        <AxisHead axis={axis} whole={props.whole} zoom={props.zoom} lane={lane} />
      </div>
      <div class="space" role="rowgroup" ref={(element) => { if (element) element.style.height = `${lanes.length * ROW_HEIGHT}px` }}>
        {lanes.slice(first, end).map((rows, offset) => (
          <Lane key={first + offset} {...props} level={first + offset} rows={rows} width={seen.width} isSelected={first + offset === level} />
        ))}
      </div>
    </div>
  )
}

function Lane(props: Props & { level: number; rows: readonly number[]; width: number; isSelected: boolean }) {
  const { tree, rows, level, width, axis, now, selected, isSelected, select, open } = props
  const canvas = useRef<HTMLCanvasElement>(null)
  const { theme } = useShared()
  const dark = useDark()
  const chosen = isSelected ? selected : -1
  useEffect(() => {
    const frame = requestAnimationFrame(() => canvas.current && draw(canvas.current, props, chosen))
    return () => cancelAnimationFrame(frame)
  }, [tree, rows, width, axis, now, chosen, theme, dark])
  const at = (event: MouseEvent) => {
    const area = canvas.current!.getBoundingClientRect()
    return rowAt(tree, rows, axis.at((event.clientX - area.left) / Math.max(area.width, 1)), now)
  }
  const row = isSelected ? tree.rows[selected] : undefined
  return (
    <div class="row" role="row" id={`row-${level}`} aria-rowindex={level + 2} aria-selected={isSelected}
      ref={(element) => { if (element) element.style.transform = `translateY(${level * ROW_HEIGHT}px)` }}>
      <span class="label" role="gridcell">
        {level}: {exactCount(rows.length)} {rows.length === 1 ? 'span' : 'spans'}
        {row && <>, <span class={`status-${row.status}`}>{mark(row.status)}</span>{plain(row.name) || '(no name)'} {duration(row.duration_ms)}</>}
      </span>
      <span class="lane" role="gridcell" onClick={(event) => select(at(event))} onDblClick={(event) => open(at(event))}
        onMouseMove={(event) => {
          const under = tree.rows[at(event)]
          if (under) event.currentTarget.title = `${plain(under.name)}\n${under.kind}\nbegins ${duration(under.start_ms)} after the start\nduration: ${duration(under.duration_ms)}`
        }}>
        <canvas ref={canvas} aria-hidden="true" />
      </span>
    </div>
  )
}

function draw(element: HTMLCanvasElement, { tree, rows, axis, now, width }: Props & { rows: readonly number[]; width: number }, chosen: number): void {
  const context = element.getContext('2d')
  if (!context || !width) return
  const scale = devicePixelRatio
  element.width = width * scale
  element.height = ROW_HEIGHT * scale
  context.scale(scale, scale)
  const style = getComputedStyle(element)
  const color = (name: string) => style.getPropertyValue(`--${name}-drawn`)
  const known = new Set(['llm', 'embedding', 'retrieval', 'tool'])
  for (const block of blocksOf(tree, rows, axis, now, width)) {
    context.fillStyle = color(known.has(block.kind) ? block.kind : 'other')
    context.globalAlpha = block.open ? 0.5 : 1
    context.fillRect(block.left, 6, block.width, 16)
    context.globalAlpha = 1
    // The edge of the next bar is seen, and a mark below says that one failed.
    context.clearRect(block.left + block.width - 0.5, 6, 0.5, 16)
    if (!block.failed) continue
    context.fillStyle = color('error')
    context.fillRect(block.left, 23, Math.max(block.width, 3), 4)
  }
  const row = tree.rows[chosen]
  const [left, right] = row ? [axis.place(row.start_ms), axis.place(row.start_ms + (row.duration_ms ?? Math.max(now - row.start_ms, 0)))] : [1, 0]
  if (!row || right < 0 || left > 1) return
  context.strokeStyle = color('fg')
  context.lineWidth = 2
  context.strokeRect(left * width - 1, 4, Math.max((right - left) * width, 2) + 2, 20)
}
