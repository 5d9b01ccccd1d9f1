// A picture of the whole trace: how many spans run at a time, by kind, and where some fail. Dragging over it zooms.

import { useEffect, useLayoutEffect, useMemo, useRef, useState } from 'preact/hooks'
import { duration, exactCount } from '../core/format'
import { layout, between, type View } from '../core/layout'
import { busyOf, STACKED, type Busy } from '../core/measures'
import type { Tree } from '../core/tree'
import { useShared } from './app'
import { useDrag } from './axis'
import { place } from './spanrow'

const HEIGHT = 44
/** Height of the marks of failed spans below the picture. */
const FAILED = 4

type Props = { tree: Tree; whole: View; view: View; now: number; zoom: (view: View) => void }

export function Minimap({ tree, whole, view, now, zoom }: Props) {
  const canvas = useRef<HTMLCanvasElement>(null)
  const [width, setWidth] = useState(0)
  const { theme } = useShared()
  const dark = useDark()
  useLayoutEffect(() => {
    const read = () => setWidth(canvas.current!.clientWidth)
    read()
    const observer = new ResizeObserver(read)
    observer.observe(canvas.current!)
    return () => observer.disconnect()
  }, [])
  const axis = useMemo(() => layout(whole, [], 1), [whole])
  const isOpen = useMemo(() => tree.rows.some((row) => row.status === 'pending'), [tree])
  const busy = useMemo(() => busyOf(tree, whole, now, Math.max(1, Math.min(Math.floor(width / 2), 1000))), [tree, whole, width, isOpen ? now : 0])
  // In the next frame, because the theme is set on the document after the parts of the page have been told of it.
  useEffect(() => {
    const frame = requestAnimationFrame(() => canvas.current && draw(canvas.current, busy, width))
    return () => cancelAnimationFrame(frame)
  }, [busy, width, theme, dark])
  const { drag, handlers } = useDrag((one, other) => zoom(between(axis, one, other, whole)))
  const [left, right] = [axis.place(view.from), axis.place(view.to)]
  const isWhole = left <= 0 && right >= 1
  const failures = busy.failed.reduce((sum, each) => sum + each, 0)
  return (
    <div class="minimap" {...handlers} onDblClick={() => zoom(whole)} title="drag to zoom, double click for the whole trace">
      <canvas ref={canvas} role="img"
        aria-label={`Spans at a time over ${duration(whole.to - whole.from)}, at most ${exactCount(Math.ceil(busy.most))}; ${failures ? 'some fail' : 'none fails'}`} />
      {!isWhole && <span class="shade" ref={place(0, Math.max(0, left))} />}
      {!isWhole && <span class="shade" ref={place(Math.min(1, right), 1 - Math.min(1, right))} />}
      {drag && <span class="dragged" ref={place(Math.min(...drag), Math.abs(drag[1] - drag[0]))} />}
    </div>
  )
}

function draw(element: HTMLCanvasElement, busy: Busy, width: number): void {
  const context = element.getContext('2d')
  if (!context || !width) return
  const scale = devicePixelRatio
  element.width = width * scale
  element.height = HEIGHT * scale
  context.scale(scale, scale)
  context.clearRect(0, 0, width, HEIGHT)
  const style = getComputedStyle(element)
  const bins = busy.failed.length
  const [size, tall] = [width / bins, HEIGHT - FAILED - 2]
  for (let bin = 0; bin < bins; bin++) {
    let bottom = tall
    for (const kind of STACKED) {
      const high = busy.most > 0 ? (busy.kinds[kind][bin]! / busy.most) * tall : 0
      if (high <= 0) continue
      context.fillStyle = style.getPropertyValue(`--${kind}-drawn`)
      context.fillRect(bin * size, bottom - high, Math.ceil(size), high)
      bottom -= high
    }
    if (!busy.failed[bin]) continue
    context.fillStyle = style.getPropertyValue('--error-drawn')
    context.fillRect(bin * size - 1, HEIGHT - FAILED, Math.max(size, 3), FAILED)
  }
}

/** Whether the system prefers dark, so that what is drawn on a canvas is drawn anew. */
export function useDark(): boolean {
  const [dark, set] = useState(() => matchMedia('(prefers-color-scheme: dark)').matches)
  useEffect(() => {
    const query = matchMedia('(prefers-color-scheme: dark)')
    const changed = () => set(query.matches)
    query.addEventListener('change', changed)
    return () => query.removeEventListener('change', changed)
  }, [])
  return dark
}
