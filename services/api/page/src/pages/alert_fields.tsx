// The fields of the form of a rule.

import { useState } from 'preact/hooks'
import { getJson, query } from '../api/client'
import { DIMENSIONS } from '../core/alerts'
import { plain } from '../core/format'
import { useAnswer } from '../parts/app'

export type Choices = readonly (readonly [string, string])[]

/** A field with its label, a hint, and the error of the API that is about it. */
export function Field({ id, label, hint, value, put, error, choices, options, flag, secret, readOnly }: {
  id: string; label: string; hint: string; value: string; put: (text: string) => void; error: string
  choices?: Choices; options?: readonly string[]; flag?: boolean; secret?: boolean; readOnly?: boolean
}) {
  const shared = {
    id, 'aria-invalid': error ? ('true' as const) : undefined,
    'aria-describedby': [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(' ') || undefined,
  }
  const text = { value, spellcheck: false, readOnly, onInput: (event: { currentTarget: HTMLInputElement }) => put(event.currentTarget.value) }
  const input = flag
    ? <input {...shared} type="checkbox" checked={value === 'true'} onChange={(event) => put(event.currentTarget.checked ? 'true' : '')} />
    : choices
      ? (
        <select {...shared} value={value} onChange={(event) => put(event.currentTarget.value)}>
          {[...choices, ...(choices.some(([each]) => each === value) ? [] : [[value, plain(value)] as const])].map(([each, text]) => <option key={each} value={each}>{text}</option>)}
        </select>
      )
      : secret
        ? <input {...shared} {...text} type="password" autocomplete="new-password" />
        : <input {...shared} {...text} list={options ? `${id}-list` : undefined} autocomplete="off" />
  return (
    <div class={flag ? 'alerts-field alerts-flag' : 'alerts-field'}>
      <label for={id}>{label}</label>
      {input}
      {hint && <span class="dim" id={`${id}-hint`}>{hint}</span>}
      {error && <span class="alerts-error" id={`${id}-error`} role="alert">{plain(error)}</span>}
      {options && <datalist id={`${id}-list`}>{options.map((each) => <option key={each} value={each} />)}</datalist>}
    </div>
  )
}

/** Pairs of a name and a value: filters or headers. */
export function Lines({ id, label, hint, lines, put, isFilter, error }: {
  id: string; label: string; hint: string; lines: readonly [string, string][]; put: (lines: [string, string][]) => void; isFilter: boolean; error: string
}) {
  const set = (index: number, pair: [string, string]) => put(lines.map((each, at) => (at === index ? pair : each)))
  return (
    <div class="alerts-field" role="group" aria-labelledby={`${id}-label`}>
      <span id={`${id}-label`}>{label}</span>
      <div class="alerts-lines">
        {lines.map((pair, index) => (
          <Line key={index} id={`${id}-${index}`} number={index + 1} pair={pair} isFilter={isFilter} isWrong={!!error}
            put={(next) => set(index, next)} remove={() => put(lines.filter((_, at) => at !== index))} />
        ))}
        <button type="button" onClick={() => put([...lines, ['', '']])}>+ {isFilter ? 'filter' : 'header'}</button>
      </div>
      <span class="dim">{hint}</span>
      {error && <span class="alerts-error" role="alert">{plain(error)}</span>}
    </div>
  )
}

type Held = { keys: { key: string }[] }
type Values = { values: { value: string; count: number }[] }

function Line({ id, number, pair: [key, value], put, remove, isFilter, isWrong }: {
  id: string; number: number; pair: [string, string]; put: (pair: [string, string]) => void; remove: () => void; isFilter: boolean; isWrong: boolean
}) {
  // The menus hold what the stored spans have; they are asked for when the field is entered.
  const [entered, setEntered] = useState('')
  const keys = useAnswer(isFilter && entered ? 'keys' : null, (options) => getJson<Held>('./keys', options))
  const asked = isFilter && entered === 'value' && key && !key.startsWith('eval.') ? key : null
  const values = useAnswer(asked, (options) => getJson<Values>(`./values${query([['key', filterKey(key)], ['limit', '50']])}`, options))
  const names = [...DIMENSIONS, ...(keys.data?.keys ?? []).map((each) => `attr.${each.key}`)]
  return (
    <div class="alerts-line">
      <input aria-label={`${isFilter ? 'key' : 'header'} ${number}`} value={key} list={isFilter ? `${id}-keys` : undefined} autocomplete="off" spellcheck={false}
        aria-invalid={isWrong ? 'true' : undefined} onFocus={() => setEntered('key')} onInput={(event) => put([event.currentTarget.value, value])} />
      <span aria-hidden="true">=</span>
      <input aria-label={`value ${number}`} value={value} list={isFilter ? `${id}-values` : undefined} autocomplete="off" spellcheck={false}
        onFocus={() => setEntered('value')} onInput={(event) => put([key, event.currentTarget.value])} />
      <button type="button" aria-label={`remove ${isFilter ? 'filter' : 'header'} ${number}`} onClick={remove}>×</button>
      {isFilter && <datalist id={`${id}-keys`}>{names.map((each) => <option key={each} value={each} />)}</datalist>}
      {isFilter && <datalist id={`${id}-values`}>{(values.data?.values ?? []).map((each) => <option key={each.value} value={each.value} />)}</datalist>}
    </div>
  )
}

/** The name of a key for `GET /values`. */
function filterKey(key: string): string {
  return DIMENSIONS.includes(key) || key.startsWith('attr.') ? key : `attr.${key}`
}
