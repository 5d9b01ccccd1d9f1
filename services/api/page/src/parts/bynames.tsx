// Statistics of the spans of a trace by name.

import { useMemo, useState } from 'preact/hooks'
import { duration, exactCount, exactMoney, money, plain } from '../core/format'
import { byName, type ByName } from '../core/measures'
import type { Tree } from '../core/tree'
import { scroller } from './scroller'

const COLUMNS = [
  ['count', 'spans', (row: ByName) => row.count],
  ['cost', 'cost', (row: ByName) => row.nusd],
  ['self', 'self time', (row: ByName) => row.self],
  ['longest', 'longest', (row: ByName) => row.longest ?? -1],
  ['errors', 'failed', (row: ByName) => row.errors],
] as const
/** Names that are shown at first. */
const FIRST = 50

export function ByNames({ tree, select }: { tree: Tree; select: (index: number) => void }) {
  const all = useMemo(() => byName(tree), [tree])
  const [by, setBy] = useState<string>('self')
  const [whole, setWhole] = useState(false)
  const value = COLUMNS.find(([name]) => name === by)![2]
  const sorted = useMemo(() => [...all].sort((a, b) => value(b) - value(a)), [all, value])
  const shown = whole ? sorted : sorted.slice(0, FIRST)
  return (
    <section aria-label="Spans by name" class="scroll" ref={scroller}>
      <h2>By name</h2>
      {tree.hidden > 0 && <p class="dim">Without the {exactCount(tree.hidden)} spans that are not loaded.</p>}
      <table>
        <thead>
          <tr>
            <th scope="col">name</th>
            <th scope="col">kind</th>
            {COLUMNS.map(([name, title]) => (
              <th key={name} scope="col" class="number" aria-sort={name === by ? 'descending' : undefined}>
                <button type="button" onClick={() => setBy(name)}>{title}{name === by ? ' ▾' : ''}</button>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {shown.map((row) => (
            <tr key={`${row.kind}\n${row.name}`}>
              <td class="name"><button type="button" class="plain" title="select the longest" onClick={() => select(row.index)}>{plain(row.name) || '(no name)'}</button></td>
              <td>{row.kind}</td>
              <td class="number">{exactCount(row.count)}</td>
              <td class="number" title={exactMoney(row.nusd / 1e9)}>{row.unpriced ? '≥ ' : ''}{money(row.nusd / 1e9)}{row.unpriced ? ` + ${exactCount(row.unpriced)} unpriced` : ''}</td>
              <td class="number">{duration(row.self)}</td>
              <td class="number">{duration(row.longest)}</td>
              <td class={row.errors ? 'number status-error' : 'number'}>{exactCount(row.errors)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {!whole && sorted.length > FIRST && <button type="button" onClick={() => setWhole(true)}>{exactCount(sorted.length - FIRST)} more names</button>}
    </section>
  )
}
