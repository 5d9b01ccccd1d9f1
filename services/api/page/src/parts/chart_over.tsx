// What lies over the canvas of a chart: the values under the cursor, dots that open a trace, and flags of events.

import type { ComponentChildren } from 'preact'
import uPlot from 'uplot'
import { amount, plain, type Unit } from '../core/format'
import { clusters } from '../core/series'
import { between, shortInstant } from '../core/time'
import type { Canvas, Drawn } from './chart_canvas'

/** A single call: when it began (Unix milliseconds), its value in the unit of the chart, its name, and its address. */
export type Exemplar = { at: number; value: number; name: string; href: string }
/** An event at an instant (Unix milliseconds), in words; with an address it is a link. */
export type Mark = { at: number; name: string; href?: string }

/** Sets styles of an element; through the object model, because the policy of the page allows no style attribute. */
export function styled(styles: Partial<CSSStyleDeclaration>): (element: HTMLElement | null) => void {
  return (element) => void (element && Object.assign(element.style, styles))
}

/** A box over the area between the axes. */
function Over({ canvas, children }: { canvas: Canvas; children: ComponentChildren }) {
  const { left, top, width, height } = canvas.plot.bbox
  const px = (size: number) => `${size / uPlot.pxRatio}px`
  return <div class="chart-over" ref={styled({ left: px(left), top: px(top), width: px(width), height: px(height) })}>{children}</div>
}

/** The values of the step under the cursor. */
export function Hover({ canvas: { plot }, canvas, drawn, at, total, unit, now }: {
  canvas: Canvas; drawn: Drawn; at: number | null; total: string; unit: Unit; now: number
}) {
  const { frame, hidden, looks, stacked, zone } = drawn
  if (at === null || at >= frame.starts.length) return null
  const x = plot.valToPos((frame.starts[at]! + frame.ends[at]!) / 2000, 'x')
  const [width, isRight] = [plot.over.clientWidth, x > plot.over.clientWidth / 2]
  const lines = frame.names.flatMap((name, line) => (name === total || !hidden.has(name) ? [{ name, line, value: frame.values[line]![at]! }] : []))
  // The highest layer is on top, and so is its line here; layers without a value would only make the list long.
  const listed = stacked ? lines.filter(({ name, value }) => name === total || value !== null).reverse() : lines
  return (
    <Over canvas={canvas}>
      {!stacked && lines.map(({ name, line, value }) => value !== null && name !== total && (
        <i key={name} class="chart-point" ref={styled({ left: `${x}px`, top: `${plot.valToPos(value, 'y')}px`, background: looks[line]!.colour })} />
      ))}
      <div class="chart-tip" aria-hidden="true" ref={styled(isRight ? { right: `${width - x + 12}px`, left: 'auto' } : { left: `${x + 12}px`, right: 'auto' })}>
        <div class="dim">{between(frame.starts[at]!, frame.ends[at]!, now, zone)}{frame.partial[at] ? ' · so far' : ''}</div>
        <table>
          <tbody>
            {listed.map(({ name, line, value }) => (
              <tr key={name} class={name === total ? 'chart-total' : ''}>
                <td>{name !== total && <i class="chart-swatch" ref={styled({ background: looks[line]!.colour })} />}{name === total ? 'total' : plain(name)}</td>
                <td class="number">{amount(value, unit)}{frame.notes[line]![at] && <span class="dim"> {frame.notes[line]![at]}</span>}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Over>
  )
}

/** Pixels of a dot that can be hit, and the least distance of its middle from the top, below the flags there. */
const DOT = 24, BELOW_FLAGS = 26

/** Dots of single calls. One outside the range is left out, and one that a dot before it would cover. */
export function Dots({ canvas: { plot }, canvas, exemplars, unit, zone }: { canvas: Canvas; exemplars: readonly Exemplar[]; unit: Unit; zone: string }) {
  const width = plot.over.clientWidth
  const shown: { exemplar: Exemplar; x: number; y: number }[] = []
  for (const exemplar of exemplars) {
    const x = plot.valToPos(exemplar.at / 1e3, 'x')
    const y = Math.max(plot.valToPos(exemplar.value, 'y'), BELOW_FLAGS)
    const isCovered = shown.some((other) => Math.abs(other.x - x) < DOT && Math.abs(other.y - y) < DOT)
    if (x >= 0 && x <= width && !isCovered) shown.push({ exemplar, x, y })
  }
  if (!shown.length) return null
  return (
    <Over canvas={canvas}>
      {shown.map(({ exemplar, x, y }) => {
        const text = `${plain(exemplar.name)} ${amount(exemplar.value, unit)}, ${shortInstant(exemplar.at, exemplar.at, zone)}: open the trace`
        return <a key={exemplar.href} class="chart-dot" href={exemplar.href} title={text} aria-label={text} ref={styled({ left: `${x}px`, top: `${y}px` })} />
      })}
    </Over>
  )
}

/** Flags of events at the top. */
export function Flags({ canvas: { plot }, canvas, marks, zone }: { canvas: Canvas; marks: readonly Mark[]; zone: string }) {
  const width = plot.over.clientWidth
  const placed = marks
    .map((mark) => ({ mark, x: plot.valToPos(mark.at / 1e3, 'x') }))
    .filter(({ x }) => x >= 0 && x <= width)
    .sort((a, b) => a.x - b.x)
  if (!placed.length) return null
  return (
    <Over canvas={canvas}>
      {clusters(placed.map(({ x }) => x), 24).map((group) => {
        const members = group.map((index) => placed[index]!)
        const [{ mark, x }] = members as [(typeof members)[number]]
        const told = members.slice(0, 8).map((each) => `${shortInstant(each.mark.at, each.mark.at, zone)} ${plain(each.mark.name)}`)
        const text = [...told, ...(members.length > 8 ? [`${members.length - 8} more`] : [])].join('\n')
        const place = styled({ left: `${x}px` })
        const sign = members.length > 1 ? `⚑${members.length}` : '⚑'
        return mark.href
          ? <a key={mark.at} class="chart-flag" href={mark.href} title={text} aria-label={text} ref={place}>{sign}</a>
          : <span key={mark.at} class="chart-flag" role="img" title={text} aria-label={text} ref={place}>{sign}</span>
      })}
    </Over>
  )
}
