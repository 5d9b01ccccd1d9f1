// The field that adds a filter: first the key, then one of the values that the stored spans have, or one that is typed.

import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks'
import { getJson, query } from '../api/client'
import type { HeldKeys, HeldValues } from '../api/values'
import { filtersOfSpans, parseTyped, parseValue, plus, without, type Chip, type FilterKey } from '../core/filter'
import { keyOptions, valueOptions, type Option } from '../core/filter_menu'
import { cut, plain } from '../core/format'
import { useAnswer } from './app'
import type { FilterBarProps } from './filterbar'
import { Note } from './states'

const MOST_TEXT = 120
const MOST_VALUES = '30'
const MOST_KEYS = '20'
const PAUSE_MS = 120
const HINTS = { usd: 'US dollars: 0.01', ms: '1.5s or 200ms', count: '1000' }

type Props = FilterBarProps & {
  id: string
  /** The chip that is changed; null = a filter is added. */
  edited: Chip | null
  done: () => void
}

export function FilterField({ params, filters, change, range, id, edited, done }: Props) {
  const [chosen, choose] = useState<{ key: FilterKey; not: boolean } | null>(null)
  const [text, setText] = useState('')
  const [isOpen, setOpen] = useState(false)
  const [active, setActive] = useState(-1)
  const [problem, setProblem] = useState('')
  const input = useRef<HTMLInputElement>(null)
  const list = useRef<HTMLUListElement>(null)
  const show = (key: typeof chosen, written: string, open = true) => {
    choose(key)
    setText(written)
    setOpen(open)
    setActive(-1)
    setProblem('')
  }
  useLayoutEffect(() => {
    if (!edited) return
    show({ key: edited.key, not: edited.not }, edited.value)
    input.current?.focus()
    input.current?.select()
  }, [edited])
  useLayoutEffect(() => list.current?.querySelector('[aria-selected=true]')?.scrollIntoView({ block: 'nearest' }), [active])

  const name = chosen && `${chosen.not ? 'not.' : ''}${chosen.key.name}`
  // The value of the chip that is changed is no beginning: all values are offered in its place.
  const typed = edited && text === edited.value ? '' : text.trim()
  const late = useLater(typed)
  const spans = [...filtersOfSpans(params, filters, name ?? ''), ...range]
  const of = chosen ? (chosen.key.of === undefined ? chosen.key.name : chosen.key.of) : null
  const isValue = chosen?.key.kind === 'value'
  const valuesPath = `./values${query([['key', of ?? ''], ['prefix', late], ['limit', MOST_VALUES], ...spans])}`
  const values = useAnswer(isOpen && isValue && of !== null ? valuesPath : null,
    (options) => getJson<HeldValues>(valuesPath, options))
  const keysPath = `./keys${query([['prefix', late.replace(/^attr\.?/, '')], ['limit', MOST_KEYS], ...spans])}`
  const keys = useAnswer(isOpen && !chosen && filters.attributes ? keysPath : null, (options) => getJson<HeldKeys>(keysPath, options))

  const end = () => {
    show(null, '', false)
    done()
  }
  const add = (parameter: string, value: string) => {
    const others = edited ? without(params, edited.name, edited.value) : params
    end()
    change(plus(others, filters, parameter, value))
  }
  const take = (option: Option) => {
    if ('adds' in option) return add(...option.adds)
    show({ key: option.takes, not: false }, '')
    input.current?.focus()
  }
  /** Adds what is written, whatever the list offers. */
  const accept = () => {
    if (!chosen) {
      const parsed = parseTyped(text, filters)
      return typeof parsed === 'string' ? setProblem(parsed) : add(...parsed)
    }
    if (!text.trim()) return setProblem(`${chosen.key.label}: write a value${isValue ? ' or choose one' : ''}`)
    const parsed = parseValue(chosen.key, text)
    if (typeof parsed === 'string') add(name!, parsed)
    else setProblem(parsed.problem)
  }

  const held = values.data?.key === of ? values.data : null
  const offered = !chosen ? keyOptions(filters, keys.data?.keys ?? [], text)
    : { options: isValue || chosen.key.choices ? valueOptions(chosen.key, name!, held?.values ?? [], typed, Date.now()) : [], first: -1 }
  const { options } = offered
  const at = active < 0 ? offered.first : Math.min(active, options.length - 1)
  const pressed = (event: KeyboardEvent) => {
    const step = event.key === 'ArrowDown' ? 1 : event.key === 'ArrowUp' ? -1 : 0
    if (step) {
      if (!isOpen) setOpen(true)
      else if (options.length) setActive(at < 0 ? (step > 0 ? 0 : options.length - 1) : (at + step + options.length) % options.length)
    } else if (event.key === 'Enter') {
      if (isOpen && options[at]) take(options[at])
      else if (text.trim() || chosen) accept()
      else setOpen(true)
    } else if (event.key === 'Escape' && (isOpen || chosen || text)) {
      if (chosen && !edited) show(null, '')
      else end()
    } else if (event.key === 'Backspace' && chosen && text === '') {
      show(null, '')
      done()
    } else return
    event.preventDefault()
    event.stopPropagation()
  }
  const answer = chosen ? values : keys
  const more = chosen ? held?.more : keys.data?.more
  const until = chosen ? held?.searched_until : keys.data?.searched_until
  const isLoading = answer.loading && isOpen && (chosen ? isValue && of !== null && !held : filters.attributes && !keys.data)
  const isListed = isOpen && (options.length > 0 || isLoading || answer.error !== null)
  return (
    <span class="filter-add" onFocusOut={(event) => {
      if (!event.currentTarget.contains(event.relatedTarget as Node | null)) setOpen(false)
    }}>
      <span class="filter-field">
        {chosen && <label for={id}>{plain(chosen.key.label)}</label>}
        {chosen && filters.excluded && (isValue || chosen.key.kind === 'choice') && (
          <select aria-label="how it is compared" value={chosen.not ? 'not' : 'is'}
            onChange={(event) => {
              choose({ ...chosen, not: event.currentTarget.value === 'not' })
              input.current?.focus()
            }}>
            <option value="is">is</option>
            <option value="not">is not</option>
          </select>
        )}
        <input id={id} ref={input} role="combobox" aria-expanded={isListed} aria-controls={isListed ? `${id}-list` : undefined} aria-autocomplete="list"
          aria-activedescendant={isOpen && options[at] ? `${id}-option-${at}` : undefined} aria-label={chosen ? undefined : 'add a filter'}
          aria-describedby={problem ? `${id}-problem` : undefined} autocomplete="off" spellcheck={false} size={chosen ? 26 : 16}
          placeholder={chosen ? (chosen.key.unit ? HINTS[chosen.key.unit] : chosen.key.kind === 'text' ? 'a text' : 'a value') : '+ add filter'}
          value={text} onFocus={() => setOpen(true)} onClick={() => setOpen(true)} onKeyDown={pressed}
          onInput={(event) => show(chosen, event.currentTarget.value)} />
        {chosen && <button type="button" onClick={accept}>add</button>}
        {chosen && <button type="button" aria-label="add no filter" onClick={() => { end(); input.current?.focus() }}>×</button>}
      </span>
      {isListed && (
        <div class="filter-menu" onMouseDown={(event) => event.preventDefault()}>
          <ul id={`${id}-list`} ref={list} role="listbox" aria-label={chosen ? `values of ${plain(chosen.key.label)}` : 'filters'}>
            {options.map((option, position) => (
              <li key={position} id={`${id}-option-${position}`} role="option" aria-selected={position === at} title={plain(option.text)} onClick={() => take(option)}>
                <span>{cut(plain(option.text), MOST_TEXT)}</span>
                {option.beside && <span class="dim">{option.beside}</span>}
              </li>
            ))}
          </ul>
          {answer.error && <p class="note error">{plain(answer.error.message)}</p>}
          {isLoading && <p class="dim">Loading…</p>}
          {more && <p class="dim">There are more: write how yours begins.</p>}
          {until && <p class="dim">Counted since {until}; older ones were not looked at.</p>}
        </div>
      )}
      {problem && <div id={`${id}-problem`} role="alert"><Note text={plain(problem)} /></div>}
    </span>
  )
}

/** *value* as it was a moment ago, so that a request is made for what was typed and not for every letter. */
function useLater(value: string): string {
  const [late, set] = useState(value)
  useEffect(() => {
    const timer = setTimeout(() => set(value), PAUSE_MS)
    return () => clearTimeout(timer)
  }, [value])
  return late
}
