// The filters of the list of sessions: a field for each parameter of the API.

import { useState } from 'preact/hooks'
import type { SessionFilter } from '../api/sessions'
import { address, type Route } from '../core/route'
import { go } from './app'

type Field = { name: SessionFilter; text: string; choices?: readonly string[]; kind?: 'number' | 'whole'; hint?: string; size: number }

const FIELDS: readonly Field[] = [
  { name: 'label', text: 'label contains', size: 14 },
  { name: 'userId', text: 'user', size: 10 },
  { name: 'status', text: 'status', choices: ['active', 'completed', 'error'], size: 0 },
  { name: 'source', text: 'source', choices: ['reporter', 'spans', 'mist', 'costkatana', 'nats'], size: 0 },
  { name: 'minCost', text: 'cost from $', kind: 'number', size: 6 },
  { name: 'maxCost', text: 'to $', kind: 'number', size: 6 },
  { name: 'minSpans', text: 'spans from', kind: 'whole', size: 5 },
  { name: 'maxSpans', text: 'to', kind: 'whole', size: 5 },
]

export function SessionFilters({ route }: { route: Route }) {
  const { params } = route
  // What was typed belongs to the address that it was typed under; the fields stay, and so does the focus. It is not
  // removed by an effect, which runs so late that it would remove the first letter that is typed afterwards.
  const given = [...params].join('\n')
  const [written, setWritten] = useState<{ given: string; typed: Partial<Record<SessionFilter, string>> }>({ given, typed: {} })
  const typed = written.given === given ? written.typed : {}
  const valueOf = (name: SessionFilter) => typed[name] ?? params.get(name) ?? ''
  const search = (changes: Partial<Record<SessionFilter, string>>) => {
    const next = Object.entries({ ...typed, ...changes }).map(([name, value]) => [name, value.trim() || null])
    go(address('sessions', '', params.with({ ...Object.fromEntries(next), page: null })))
  }
  const isSet = FIELDS.some(({ name }) => params.has(name))
  return (
    <form class="bar sessions-filters" role="search" onSubmit={(event) => { event.preventDefault(); search({}) }}>
      {FIELDS.map(({ name, text, choices, kind, size }) => (
        <label key={name}>{text}{' '}
          {choices ? (
            <select id={`sessions-${name}`} value={valueOf(name)} onChange={(event) => search({ [name]: event.currentTarget.value })}>
              <option value="">any</option>
              {/* A value that was written into the address is shown, even if there is no such choice. */}
              {[...choices, ...(valueOf(name) && !choices.includes(valueOf(name)) ? [valueOf(name)] : [])].map((each) => <option key={each}>{each}</option>)}
            </select>
          ) : (
            <input id={name === 'label' ? 'filter' : `sessions-${name}`} size={size} value={valueOf(name)} autocomplete="off"
              inputMode={kind === 'number' ? 'decimal' : kind === 'whole' ? 'numeric' : 'text'}
              onInput={(event) => {
                const text = event.currentTarget.value
                setWritten((before) => ({ given, typed: { ...(before.given === given ? before.typed : {}), [name]: text } }))
              }} />
          )}
        </label>
      ))}
      <button type="submit">search</button>
      {isSet && (
        <button type="button" onClick={() => go(address('sessions', '', params.with({ ...Object.fromEntries(FIELDS.map(({ name }) => [name, null])), page: null })))}>clear</button>
      )}
    </form>
  )
}
