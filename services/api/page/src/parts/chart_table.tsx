// The legend of a chart, and its values as a table.

import { amount, exactAmount, plain, type Unit } from '../core/format'
import type { Frame } from '../core/series'
import { allAbout, between } from '../core/time'
import type { Look } from './chart_canvas'
import { styled } from './chart_over'

export function Legend({ names, looks, hidden, setHidden, isTable, setTable, stacked }: {
  names: readonly string[]; looks: readonly Look[]; hidden: ReadonlySet<string>; setHidden: (hidden: ReadonlySet<string>) => void
  isTable: boolean; setTable: (isTable: boolean) => void; stacked: boolean
}) {
  const toggle = (name: string, only: boolean) => {
    if (only) {
      const others = names.filter((other) => other !== name)
      const isAlone = others.every((other) => hidden.has(other)) && !hidden.has(name)
      return setHidden(new Set(isAlone ? [] : others))
    }
    const changed = new Set(hidden)
    if (!changed.delete(name)) changed.add(name)
    setHidden(changed)
  }
  return (
    <figcaption class="chart-legend">
      {names.length > 1 && names.map((name, index) => (
        <button type="button" key={name} aria-pressed={!hidden.has(name)} title="Show or hide; with Shift, show only this"
          onClick={(event) => toggle(name, event.shiftKey)}>
          <i class={stacked ? 'chart-swatch' : 'chart-stroke'} ref={styled(swatch(looks[index]!, stacked))} />{plain(name) || '(none)'}
        </button>
      ))}
      <button type="button" class="chart-as-table" aria-pressed={isTable} onClick={() => setTable(!isTable)}>table</button>
    </figcaption>
  )
}

function swatch({ colour, dash }: Look, stacked: boolean): Partial<CSSStyleDeclaration> {
  if (stacked || !dash.length) return { background: colour }
  let at = 0
  const stops = dash.map((length, index) => {
    const stop = `${index % 2 ? 'transparent' : colour} ${at}px ${at + length}px`
    at += length
    return stop
  })
  return { background: `repeating-linear-gradient(90deg, ${stops.join(', ')})` }
}

/** Every step of a chart, the latest first. */
export function ChartTable({ title, frame, total, unit, zone, now }: { title: string; frame: Frame; total: string; unit: Unit; zone: string; now: number }) {
  return (
    <div class="scroll chart-table" tabIndex={0} role="region" aria-label={`${title}, as a table`}>
      <table>
        <caption class="chart-hidden">{title}</caption>
        <thead>
          <tr><th scope="col" aria-sort="descending">time</th>{frame.names.map((name) => (
            <th scope="col" class="number" key={name}>{name === total ? 'total' : plain(name) || '(none)'}</th>
          ))}</tr>
        </thead>
        <tbody>
          {frame.starts.map((start, at) => (
            <tr key={start}>
              <th scope="row" class="time" title={allAbout(start, now, zone)}>{between(start, frame.ends[at]!, now, zone)}{frame.partial[at] ? ', so far' : ''}</th>
              {frame.names.map((name, line) => (
                <td class="number" key={name} title={exactAmount(frame.values[line]![at], unit)}>
                  {amount(frame.values[line]![at], unit)}{frame.notes[line]![at] && ` ${frame.notes[line]![at]}`}
                </td>
              ))}
            </tr>
          )).reverse()}
        </tbody>
      </table>
    </div>
  )
}
