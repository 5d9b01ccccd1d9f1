// The attributes of a span with their types, each to be copied or to filter by.

import { useState } from 'preact/hooks'
import type { StoredSpan } from '../api/types'
import { isBase64, marked, MOST_TEXT } from '../core/content'
import { cut, exactCount, plain } from '../core/format'
import type { Params } from '../core/params'
import { address } from '../core/route'
import { Copy } from './copy'

/** Longest value to filter by, characters: an address holds no more. */
const MOST_FILTER = 200

export function Attributes({ span, list }: { span: StoredSpan; list: Params }) {
  const entries = Object.entries(span.attributes ?? {})
  if (!entries.length) return <p>The span has no attributes.</p>
  const filtered = (name: string, value: string) => address('traces', '', list.without('cursor').plus(name, value))
  return (
    <dl class="attributes">
      {entries.map(([key, value]) => {
        const shown = typeof value === 'string' ? value : JSON.stringify(value)
        const name = cut(plain(key), 200)
        return [
          <dt key={key}>{name}</dt>,
          <dd key={`${key}=`}>
            <LongText text={shown} />{' '}
            <span class="dim">{typeOf(value)}</span>{' '}
            <Copy text={() => shown} what={name} />{' '}
            {shown.length <= MOST_FILTER && (
              <>
                <a href={filtered(`attr.${key}`, shown)}>filter by it</a>{' '}
                <a href={filtered(`not.attr.${key}`, shown)}>filter it out</a>
              </>
            )}
          </dd>,
        ]
      })}
    </dl>
  )
}

function typeOf(value: unknown): string {
  return value === null ? 'null' : Array.isArray(value) ? `list of ${exactCount(value.length)}` : typeof value === 'object' ? 'map' : typeof value
}

/** Foreign text: cut if it is long, named if it is base64, with the marks of what was removed from it. */
export function LongText({ text, most = MOST_TEXT }: { text: string; most?: number }) {
  const [all, setAll] = useState(false)
  if (isBase64(text)) return <span class="dim">base64, {exactCount(text.length)} characters</span>
  const shown = all ? text : cut(text, most)
  return (
    <>
      {marked(shown).map((piece, at) => (piece.isMark
        ? <mark class="removed" key={at} title="removed before it was stored">{piece.text}</mark>
        : plain(piece.text, true)))}
      {!all && text.length > most && <> <button type="button" onClick={() => setAll(true)}>show</button></>}
    </>
  )
}
