// The axis above the bars: ticks, compressed stretches, and dragging over it to zoom.

import { useRef, useState } from 'preact/hooks'
import { duration } from '../core/format'
import { between, type Axis, type View } from '../core/layout'
import { place } from './spanrow'

type Props = { axis: Axis; whole: View; zoom: (view: View) => void; lane: { current: HTMLDivElement | null } }

export function AxisHead({ axis, whole, zoom, lane }: Props) {
  const { drag, handlers } = useDrag((one, other) => zoom(between(axis, one, other, whole)))
  return (
    <div class="lane axis" role="columnheader" aria-label="timeline" ref={lane} {...handlers} onDblClick={() => zoom(whole)}
      title="drag to zoom, double click for the whole trace, Ctrl and the wheel zoom around the pointer">
      {axis.gaps.map((gap) => (
        <span class="gap marked" key={gap.from} title={`${duration(gap.to - gap.from)} idle, compressed`}
          ref={place(axis.place(gap.from), axis.place(gap.to) - axis.place(gap.from))} />
      ))}
      {axis.ticks.map((at) => {
        const part = axis.place(at)
        return <span class={`tick${part < 0.04 ? ' first' : part > 0.93 ? ' last' : ''}`} key={at} ref={place(part, null)}>{at === 0 ? '0' : duration(at)}</span>
      })}
      {drag && <span class="dragged" ref={place(Math.min(...drag), Math.abs(drag[1] - drag[0]))} />}
    </div>
  )
}

/** Pixels that the pointer must move, so that a click is no drag. */
const LEAST_DRAG = 4

/** Dragging over an element: *dragged* gets the two parts of its width, 0 to 1; *drag* is what is dragged over now. */
export function useDrag(dragged: (one: number, other: number) => void) {
  const [drag, setDrag] = useState<[number, number] | null>(null)
  const began = useRef<{ x: number; part: number } | null>(null)
  const partOf = (event: PointerEvent) => {
    const area = (event.currentTarget as HTMLElement).getBoundingClientRect()
    return Math.min(1, Math.max(0, (event.clientX - area.left) / Math.max(area.width, 1)))
  }
  const end = () => {
    began.current = null
    setDrag(null)
  }
  const handlers = {
    onPointerDown: (event: PointerEvent) => {
      if (event.button !== 0) return
      const element = event.currentTarget as HTMLElement
      element.setPointerCapture(event.pointerId)
      began.current = { x: event.clientX, part: partOf(event) }
    },
    onPointerMove: (event: PointerEvent) => {
      if (began.current && (drag || Math.abs(event.clientX - began.current.x) >= LEAST_DRAG)) setDrag([began.current.part, partOf(event)])
    },
    onPointerUp: (event: PointerEvent) => {
      const from = began.current
      if (from && Math.abs(event.clientX - from.x) >= LEAST_DRAG) dragged(from.part, partOf(event))
      end()
    },
    onPointerCancel: end,
  }
  return { drag, handlers }
}
