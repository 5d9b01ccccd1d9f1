// A chart of series over time. `ChartProps` describes it; the keys are those of `KEYS`.

import { useEffect, useMemo, useRef, useState } from 'preact/hooks'
import 'uplot/dist/uPlot.min.css'
import './chart.css'
import { amount, plain, type Unit } from '../core/format'
import { frameOf, highest, snapped, type Frame, type Line } from '../core/series'
import { between, offset, tick } from '../core/time'
import { useShared } from './app'
import { draw, looksOf, type Canvas, type Drawn, type Threshold } from './chart_canvas'
import { Dots, Flags, Hover, type Exemplar, type Mark } from './chart_over'
import { ChartTable, Legend } from './chart_table'

export type { Exemplar, Line, Mark, Threshold }

export type ChartProps = {
  /** What is shown, in words: `Cost by model`. The name of the chart says it, with the range and the highest value. */
  title: string
  unit: Unit
  /** At most 12 lines and `other`. `value: null` is a gap; `partial` steps are dashed or hatched, and read "so far". */
  series: readonly Line[]
  /** The length of a step, milliseconds. */
  step: number
  /** The ends of the axis of time, Unix milliseconds: `from` and `to` of the answer. */
  range: { from: number; to: number }
  /** Layers of bars instead of lines; only for values that add up. */
  stacked?: boolean
  /** All lines together, by the API; shown where values are read, not drawn. */
  total?: Line['points']
  /** Name -> CSS colour, for names that have another one than the hash of their name. */
  colours?: Readonly<Record<string, string>>
  thresholds?: readonly Threshold[]
  /** Events: firings of rules, first calls of a model. Those that are close together share a flag. */
  marks?: readonly Mark[]
  /** Single calls, each a link. */
  exemplars?: readonly Exemplar[]
  /** Called with Unix milliseconds at edges of steps after a drag, or Shift+arrows and Enter. */
  onBrush?: (from: number, to: number) => void
  /** CSS pixels; 200 if absent. */
  height?: number
  /** Charts with the same word share the x of the cursor. */
  sync?: string
}

export const KEYS = 'Arrow keys read values, Shift and arrow keys select, Enter shows what is selected, T shows a table.'
/** The name of the line of the total; no group can be called so, because the API has no such value. */
const TOTAL = '\u0000total'
const OTHER = { other: 'var(--other)' }
let charts = 0

export function Chart(props: ChartProps) {
  const { title, unit, series, step, range, stacked = false, total, thresholds = [], marks = [], exemplars = [], height = 200 } = props
  const { zone } = useShared()
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set())
  const [isTable, setTable] = useState(false)
  const [at, setAt] = useState<number | null>(null)
  const [anchor, setAnchor] = useState<number | null>(null)
  const [isActive, setActive] = useState(false)
  const [, setView] = useState('')
  const [id] = useState(() => `chart-${++charts}`)
  const root = useRef<HTMLDivElement>(null)
  const canvas = useRef<Canvas | null>(null)
  const frame = useMemo(
    () => frameOf(total ? [...series, { name: TOTAL, points: total }] : series, step, range.to),
    [series, total, step, range.to],
  )
  const undrawn = new Set([...hidden, TOTAL])
  const names = frame.names.filter((name) => name !== TOTAL)
  const looks = looksOf(frame.names, { ...OTHER, ...props.colours }, stacked)
  const drawn: Drawn = {
    frame, looks, hidden: undrawn, stacked, thresholds, marks, range, zone,
    free: unit === 'score', axis: (value) => axisText(value, unit),
  }
  const latest = useRef(drawn)
  latest.current = drawn
  const brush = (from: number, to: number) => {
    const edges = snapped(latest.current.frame, from, to)
    if (edges) onBrush.current?.(edges.from, edges.to)
  }
  const onBrush = useRef(props.onBrush)
  onBrush.current = props.onBrush
  const hasData = frame.values.some((values) => values.some((value) => value !== null))

  useEffect(() => {
    if (!root.current) return
    const made = draw(root.current, height, props.sync ?? id, () => latest.current, {
      moved: setAt,
      selected: brush,
      drawn: () => setView(viewOf(made)),
    })
    canvas.current = made
    return () => {
      canvas.current = null
      made.end()
    }
  }, [height, props.sync, id])
  const key = JSON.stringify([frame, [...hidden], zone, range, thresholds, marks, stacked, unit, looks])
  useEffect(() => canvas.current?.update(), [key])
  useEffect(() => {
    const changed = () => canvas.current?.recolour()
    const preferred = matchMedia('(prefers-color-scheme: dark)')
    const chosen = new MutationObserver(changed)
    preferred.addEventListener('change', changed)
    chosen.observe(document.documentElement, { attributes: true, attributeFilter: ['data-theme'] })
    return () => {
      preferred.removeEventListener('change', changed)
      chosen.disconnect()
    }
  }, [])

  const move = (to: number, selects: boolean) => {
    const made = canvas.current
    const last = frame.starts.length - 1
    if (!made || last < 0) return
    const next = Math.min(Math.max(to, 0), last)
    const from = selects ? (anchor ?? at ?? next) : null
    setAnchor(from)
    const x = (index: number, edge: readonly number[]) => made.plot.valToPos(edge[index]! / 1e3, 'x')
    made.plot.setCursor({ left: (x(next, frame.starts) + x(next, frame.ends)) / 2, top: 0 })
    if (from === null) return select(made, 0, 0)
    const [left, right] = [x(Math.min(from, next), frame.starts), x(Math.max(from, next), frame.ends)]
    select(made, left, right - left)
  }
  const select = (made: Canvas, left: number, width: number) =>
    made.plot.setSelect({ left, top: 0, width, height: made.plot.over.clientHeight }, false)
  const pressed = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target !== event.currentTarget) return
    const last = frame.starts.length - 1
    const moves: Record<string, number> = { ArrowRight: at === null ? 0 : at + 1, ArrowLeft: at === null ? last : at - 1, Home: 0, End: last }
    if (event.key in moves) move(moves[event.key]!, event.shiftKey)
    else if (event.key === 'Enter' && at !== null) {
      const [first, until] = [Math.min(anchor ?? at, at), Math.max(anchor ?? at, at)]
      setAnchor(null)
      if (canvas.current) select(canvas.current, 0, 0)
      onBrush.current?.(frame.starts[first]!, frame.ends[until]!)
    } else if (event.key === 'T') setTable(!isTable)
    else if (event.key === 'Escape' && anchor !== null && canvas.current) setAnchor(null), select(canvas.current, 0, 0)
    else return
    event.preventDefault()
    event.stopPropagation()
  }
  const now = range.to
  const reading = at === null || !frame.starts.length ? '' : readingOf(frame, Math.min(at, frame.starts.length - 1), hidden, unit, zone, now)
  const far = thresholds.filter((threshold) => hasData && threshold.value > (highest(frame, undrawn, stacked)?.value ?? 0) * 2.5)
  return (
    <figure class="chart" onMouseEnter={() => setActive(true)} onMouseLeave={() => setActive(false)}>
      <div class="chart-plot" role="application" aria-roledescription="chart" tabIndex={0} id={id}
        aria-label={nameOf(title, frame, undrawn, stacked, unit, range, zone)} aria-describedby={`${id}-axes ${id}-keys`}
        onKeyDown={pressed} onFocus={() => setActive(true)} onBlur={() => setActive(false)}>
        <div ref={root} class="chart-canvas" />
        {canvas.current && (
          <>
            <Hover canvas={canvas.current} drawn={drawn} at={isActive ? at : null} total={TOTAL} unit={unit} now={now} />
            <Dots canvas={canvas.current} exemplars={exemplars} unit={unit} zone={zone} />
            <Flags canvas={canvas.current} marks={marks} zone={zone} />
          </>
        )}
        {!hasData && <p class="chart-none dim">no data in this range</p>}
      </div>
      <p class="chart-hidden" id={`${id}-axes`}>{canvas.current && axesOf(canvas.current, range, zone)}</p>
      <p class="chart-hidden" id={`${id}-keys`}>{KEYS}</p>
      <p class="chart-hidden" aria-live="polite">{isActive && document.activeElement?.id === id ? reading : ''}</p>
      <Legend names={names} looks={looks} hidden={hidden} setHidden={setHidden} isTable={isTable} setTable={setTable} stacked={stacked} />
      {far.map(({ name, value }) => <p class="dim chart-far" key={name}>{plain(name)}: its limit {amount(value, unit)} is above the chart</p>)}
      {isTable && <ChartTable title={title} frame={frame} total={TOTAL} unit={unit} zone={zone} now={now} />}
    </figure>
  )
}

/** All that the positions of what lies over the canvas depend on. */
function viewOf({ plot, labels }: Canvas): string {
  const { left, top, width, height } = plot.bbox
  return [left, top, width, height, plot.scales.x?.min, plot.scales.x?.max, plot.scales.y?.min, plot.scales.y?.max, labels.x, labels.y].join()
}

/** What stands beside the axes; the clocks of a zone may change within a range. */
function axesOf({ labels: { x, y } }: Canvas, { from, to }: ChartProps['range'], zone: string): string {
  const offsets = [...new Set([offset(from, zone), offset(to, zone)])].join(', then ')
  return `Across, ${offsets}: ${x.join(', ')}. Up: ${y.join(', ')}.`
}

/** The name of a chart as a sentence: `Cost by model, 21:05 to 22:05, highest $1.89 at 21:50`. */
function nameOf(title: string, frame: Frame, hidden: ReadonlySet<string>, stacked: boolean, unit: Unit, range: ChartProps['range'], zone: string) {
  const whole = frame.names.indexOf(TOTAL)
  const most = whole < 0 ? highest(frame, hidden, stacked) : highest({ ...frame, names: [TOTAL], values: [frame.values[whole]!] }, new Set(), false)
  const said = most ? `highest ${amount(most.value, unit)} at ${tick(frame.starts[most.at]!, zone, frame.starts[most.at]! % 6e4 ? 1e3 : 6e4)}` : 'no data'
  return `${title}, ${between(range.from, range.to, range.to, zone)}, ${said}`
}

/** The values of a step as a sentence. */
function readingOf(frame: Frame, at: number, hidden: ReadonlySet<string>, unit: Unit, zone: string, now: number): string {
  const values = frame.names.flatMap((name, line) => {
    if (hidden.has(name)) return []
    const shown = name === TOTAL ? 'total' : plain(name) || 'value'
    return [`${shown} ${amount(frame.values[line]![at], unit)}${frame.notes[line]![at] ? ` ${frame.notes[line]![at]}` : ''}`]
  })
  return `${between(frame.starts[at]!, frame.ends[at]!, now, zone)}${frame.partial[at] ? ', so far' : ''}: ${values.join(', ')}`
}

/** A value beside the axis: without the zeros that all of its neighbours have. */
function axisText(value: number, unit: Unit): string {
  const text = amount(value, unit)
  return unit === 'usd' || unit === 'usd/call' ? text : text.replace(/(\.\d*?)0+(?=\D|$)/, '$1').replace(/\.(?=\D|$)/, '')
}
