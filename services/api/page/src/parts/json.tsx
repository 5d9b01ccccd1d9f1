// A value as JSON. Of many lines only those in view are in the document.

import { useMemo, useState } from 'preact/hooks'
import { jsonLines } from '../core/content'
import { cut, exactCount, plain } from '../core/format'
import { rowsInView } from '../core/layout'
import { Copy } from './copy'

/** Number of lines up to which all are in the document, and long ones wrap. */
const MOST_LINES = 1000
const LINE_HEIGHT = 18

export function Json({ value }: { value: unknown }) {
  const [all, setAll] = useState(false)
  const { lines, isCut } = useMemo(() => jsonLines(value, all, cut), [value, all])
  return (
    <>
      <div class="bar">
        <Copy text={() => JSON.stringify(value, null, 2)} what="JSON" />
        {isCut && <button type="button" onClick={() => setAll(true)}>show long texts whole</button>}
        {lines.length > MOST_LINES && <span class="dim">{exactCount(lines.length)} lines</span>}
      </div>
      {lines.length > MOST_LINES ? <Lines lines={lines} /> : <pre>{plain(lines.join('\n'), true)}</pre>}
    </>
  )
}

function Lines({ lines }: { lines: readonly string[] }) {
  const [seen, setSeen] = useState({ top: 0, height: 420 })
  const { first, end } = rowsInView(seen.top, seen.height, LINE_HEIGHT, lines.length)
  return (
    <div class="json-lines" tabIndex={0} role="region" aria-label="JSON"
      onScroll={(event) => setSeen({ top: event.currentTarget.scrollTop, height: event.currentTarget.clientHeight })}>
      <span class="space" ref={(element) => { if (element) element.style.height = `${lines.length * LINE_HEIGHT}px` }} />
      {lines.slice(first, end).map((line, offset) => (
        <div key={first + offset} ref={(element) => { if (element) element.style.top = `${(first + offset) * LINE_HEIGHT}px` }}>{plain(line)}</div>
      ))}
    </div>
  )
}
