// The canvas of a chart: uPlot has the axes, the cursor and the selection; what lies between the axes is drawn here.

import uPlot from 'uplot'
import { plain } from '../core/format'
import { bounds, DASHES, highest, hues, lowest, segments, stackOf, type Frame } from '../core/series'
import { tick } from '../core/time'

export type Look = { colour: string; dash: readonly number[] }
export type Threshold = { value: number; name: string; href?: string }
export type Drawn = {
  frame: Frame
  looks: readonly Look[]
  hidden: ReadonlySet<string>
  stacked: boolean
  thresholds: readonly Threshold[]
  marks: readonly { at: number }[]
  /** Unix milliseconds of the ends of the x axis. */
  range: { from: number; to: number }
  zone: string
  /** The axis of values may begin above 0. */
  free: boolean
  axis: (value: number) => string
}

/** A colour variable of the style sheet for each name; *own* has those that are not the hash of the name. */
export function looksOf(names: readonly string[], own: Readonly<Record<string, string>>, stacked: boolean): Look[] {
  return hues(names).map(({ hue, again }, index) => {
    const colour = own[names[index]!] ?? `var(--hue-${hue})`
    const shown = again && !own[names[index]!] ? `color-mix(in oklab, ${colour} 55%, var(--fg))` : colour
    return { colour: shown, dash: stacked ? [] : DASHES[index % DASHES.length]! }
  })
}

/** Resolves colours of the style sheet, which a canvas does not understand. */
class Colours {
  private readonly probe: HTMLElement
  private readonly known = new Map<string, string>()

  constructor(root: HTMLElement) {
    this.probe = root.appendChild(document.createElement('i'))
    this.probe.hidden = true
  }

  of(colour: string): string {
    let found = this.known.get(colour)
    if (found === undefined) {
      this.probe.style.color = colour
      found = getComputedStyle(this.probe).color
      this.known.set(colour, found)
    }
    return found
  }

  forget(): void {
    this.known.clear()
  }
}

export type Canvas = {
  plot: uPlot
  /** The texts beside the axes of time and of values, as they are drawn: a canvas has no text that can be read out. */
  labels: { x: readonly string[]; y: readonly string[] }
  update: () => void
  recolour: () => void
  end: () => void
}
type Events = { moved: (at: number | null) => void; selected: (from: number, to: number) => void; drawn: () => void }

/** Draws *drawn()* in *root* until `end` is called; charts of one *sync* share the x of the cursor. */
export function draw(root: HTMLElement, height: number, sync: string, drawn: () => Drawn, events: Events): Canvas {
  const colours = new Colours(root)
  const middle = (frame: Frame): number[] => frame.starts.map((start, at) => (start + frame.ends[at]!) / 2000)
  const data = (): uPlot.AlignedData => {
    const x = middle(drawn().frame)
    return [x, x.map(() => 0)]
  }
  const labels: Canvas['labels'] = { x: [], y: [] }
  const axis = { stroke: () => colours.of('var(--dim)'), font: font(1) }
  const lines = { stroke: () => colours.of('var(--line)'), width: 1 }
  const options: uPlot.Options = {
    width: Math.max(root.clientWidth, 160),
    height,
    legend: { show: false },
    padding: [10, 18, 0, 0],
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), drawn().zone),
    series: [{}, { paths: () => null, points: { show: false } }],
    scales: {
      x: { range: () => [drawn().range.from / 1e3, drawn().range.to / 1e3] },
      y: { range: () => yBounds(drawn()) },
    },
    axes: [
      { ...axis, grid: { show: false }, ticks: { ...lines, size: 4 }, border: { show: true, ...lines }, size: 28, space: 64,
        values: (_, splits, __, ___, step) => (labels.x = times(splits, step, drawn().zone)) as string[] },
      { ...axis, grid: lines, ticks: { show: false }, gap: 4, space: 32,
        values: (_, splits) => (labels.y = splits.map((value) => drawn().axis(value))) as string[],
        size: (self, values) => widest(self, values) + 14 },
    ],
    cursor: {
      points: { show: false },
      y: false,
      drag: { x: true, y: false, setScale: false, dist: 6 },
      sync: { key: sync, filters: { pub: only, sub: only } },
    },
    hooks: {
      setCursor: [(self) => events.moved((self.cursor.left ?? -1) >= 0 ? (self.cursor.idx ?? null) : null)],
      setSelect: [(self) => {
        if (self.select.width < 1) return
        const [from, to] = [self.select.left, self.select.left + self.select.width].map((at) => self.posToVal(at, 'x') * 1e3)
        self.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false)
        events.selected(from!, to!)
      }],
      drawAxes: [(self) => paint(self, drawn(), (colour) => colours.of(colour))],
      draw: [() => events.drawn()],
    },
  }
  const plot = new uPlot(options, data(), root)
  const resized = new ResizeObserver(() => {
    const width = Math.max(root.clientWidth, 160)
    if (width !== plot.width) plot.setSize({ width, height })
  })
  resized.observe(root)
  return {
    plot,
    labels,
    recolour: () => (colours.forget(), plot.redraw(false, false)),
    update: () => {
      // New data would end a selection that is being dragged.
      if (plot.select.width >= 1) return
      plot.setData(data(), true)
      // The texts of the axes change with the zone too, whose scales are the same.
      plot.redraw(false, true)
    },
    end: () => {
      resized.disconnect()
      plot.destroy()
    },
  }
}

const font = (ratio: number): string => `${11 * ratio}px 'DejaVu Sans', system-ui, sans-serif`

// A selection is that of one chart; only the cursor is shared.
function only(type: string): boolean {
  return type !== 'mousedown' && type !== 'mouseup'
}

function yBounds({ frame, hidden, stacked, thresholds, free }: Drawn): [number, number] {
  const high = highest(frame, hidden, stacked)
  return bounds(lowest(frame, hidden), high && high.value, thresholds.map((threshold) => threshold.value), free)
}

function widest(self: uPlot, values: string[] | null): number {
  if (!values?.length) return 20
  self.ctx.font = font(uPlot.pxRatio)
  return Math.max(...values.map((value) => self.ctx.measureText(value).width)) / uPlot.pxRatio
}

/** Times below the axis; the first of each day has the day instead, if the axis spans more than one. */
function times(splits: number[], step: number, zone: string): string[] {
  const days = splits.map((at) => tick(at * 1e3, zone, 8.64e7))
  return splits.map((at, index) => {
    const isNewDay = index > 0 && days[index] !== days[index - 1]
    return isNewDay ? days[index]! : tick(at * 1e3, zone, step * 1e3)
  })
}

function paint(self: uPlot, drawn: Drawn, colour: (name: string) => string): void {
  const { ctx, bbox } = self
  const ratio = uPlot.pxRatio
  ctx.save()
  ctx.beginPath()
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height)
  ctx.clip()
  if (drawn.stacked) bars(self, drawn, colour)
  else curves(self, drawn, colour)
  for (const { value, name } of drawn.thresholds) rule(self, 'y', value, colour('var(--error)'), [6 * ratio, 4 * ratio], name)
  for (const { at } of drawn.marks) rule(self, 'x', at / 1e3, colour('var(--dim)'), [2 * ratio, 3 * ratio])
  ctx.restore()
}

/** A line across the chart at one value of a scale. */
function rule(self: uPlot, scale: 'x' | 'y', value: number, colour: string, dash: number[], name = ''): void {
  const { ctx, bbox } = self
  const at = Math.round(self.valToPos(value, scale, true)) + 0.5
  ctx.beginPath()
  ctx.setLineDash(dash)
  ctx.strokeStyle = colour
  ctx.lineWidth = uPlot.pxRatio
  if (scale === 'y') ctx.moveTo(bbox.left, at), ctx.lineTo(bbox.left + bbox.width, at)
  else ctx.moveTo(at, bbox.top), ctx.lineTo(at, bbox.top + bbox.height)
  ctx.stroke()
  ctx.setLineDash([])
  if (!name) return
  ctx.fillStyle = colour
  ctx.textAlign = 'left'
  // Below the line if there is no room above it.
  const isHigh = at - bbox.top < 16 * uPlot.pxRatio
  ctx.textBaseline = isHigh ? 'top' : 'bottom'
  ctx.font = font(uPlot.pxRatio)
  ctx.fillText(plain(name), bbox.left + 4 * uPlot.pxRatio, at + (isHigh ? 3 : -3) * uPlot.pxRatio)
}

/** Layers of bars, each over the time of its step; a partial step is hatched. */
function bars(self: uPlot, { frame, hidden, looks }: Drawn, colour: (name: string) => string): void {
  const { ctx } = self
  const edges = frame.starts.map((start, at) => [start, frame.ends[at]!].map((ms) => self.valToPos(ms / 1e3, 'x', true)) as [number, number])
  const tops = frame.starts.map(() => 0)
  stackOf(frame, hidden).forEach((layers, line) => {
    ctx.fillStyle = colour(looks[line]!.colour)
    layers.forEach((layer, at) => {
      if (!layer) return
      const [bottom, top] = layer.map((value) => self.valToPos(value, 'y', true)) as [number, number]
      const [left, right] = edges[at]!
      tops[at] = layer[1]
      // A thin line of background parts bars and layers, unless there is no room for it.
      const [width, depth] = [right - left, bottom - top].map((size) => Math.max(size > 4 * uPlot.pxRatio ? size - uPlot.pxRatio : size, 1))
      ctx.fillRect(left, top, width!, depth!)
    })
  })
  ctx.strokeStyle = colour('var(--bg)')
  ctx.lineWidth = 2 * uPlot.pxRatio
  frame.partial.forEach((partial, at) => {
    if (!partial || !tops[at]) return
    const [left, right] = edges[at]!
    const top = self.valToPos(tops[at]!, 'y', true)
    hatch(ctx, left, top, right - left, self.valToPos(0, 'y', true) - top)
  })
}

function hatch(ctx: CanvasRenderingContext2D, left: number, top: number, width: number, height: number): void {
  ctx.save()
  ctx.beginPath()
  ctx.rect(left, top, width, height)
  ctx.clip()
  ctx.beginPath()
  const space = 6 * uPlot.pxRatio
  for (let at = left - height; at < left + width; at += space) {
    ctx.moveTo(at, top + height)
    ctx.lineTo(at + height, top)
  }
  ctx.stroke()
  ctx.restore()
}

function curves(self: uPlot, { frame, hidden, looks }: Drawn, colour: (name: string) => string): void {
  const { ctx } = self
  const ratio = uPlot.pxRatio
  const x = frame.starts.map((start, at) => self.valToPos((start + frame.ends[at]!) / 2000, 'x', true))
  frame.values.forEach((values, line) => {
    if (hidden.has(frame.names[line]!)) return
    const y = values.map((value) => (value === null ? 0 : self.valToPos(value, 'y', true)))
    const { pieces, alone } = segments(values, frame.partial)
    ctx.strokeStyle = ctx.fillStyle = colour(looks[line]!.colour)
    ctx.lineWidth = 1.75 * ratio
    ctx.lineJoin = 'round'
    for (const dashed of [false, true]) {
      ctx.setLineDash((dashed ? [2, 4] : looks[line]!.dash).map((length) => length * ratio))
      ctx.beginPath()
      let end = -1
      for (const piece of pieces) {
        if (piece.dashed !== dashed) continue
        if (piece.from !== end) ctx.moveTo(x[piece.from]!, y[piece.from]!)
        ctx.lineTo(x[piece.to]!, y[piece.to]!)
        end = piece.to
      }
      if (end >= 0) ctx.stroke()
    }
    ctx.setLineDash([])
    for (const at of alone) {
      ctx.beginPath()
      ctx.arc(x[at]!, y[at]!, 2.5 * ratio, 0, 2 * Math.PI)
      if (frame.partial[at]) ctx.stroke()
      else ctx.fill()
    }
  })
}
