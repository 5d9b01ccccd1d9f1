// The choice of what is compared with what.

import { useState } from 'preact/hooks'
import type { HeldValues } from '../api/values'
import { getJson, query } from '../api/client'
import { choiceOf, exchanged, valuesOf, withoutSides, withValues, type Choice } from '../core/compare'
import { within } from '../core/filter'
import type { Params } from '../core/params'
import { fieldOf, parseField, type Range } from '../core/time'
import { useAnswer, useShared } from '../parts/app'

const CHOICES: Record<Choice, string> = {
  before: 'the time before', yesterday: 'the same time yesterday', last_week: 'the same time last week',
  time: 'another time …', values: 'another model, user, version …',
}
const KEYS = ['model', 'caller', 'provider', 'name', 'user_id', 'session_id', 'status', 'kind']

type Props = { params: Params; range: Range; change: (params: Params) => void }

export function Sides({ params, range, change }: Props) {
  const [choice, choose] = useState<Choice>(choiceOf(params))
  const [wrong, setWrong] = useState('')
  const other = exchanged(params)
  const chosen = (next: Choice) => {
    choose(next)
    setWrong('')
    if (next !== 'time' && next !== 'values') change(withoutSides(params).with({ compare: next }))
  }
  return (
    <div class="bar compare-sides">
      <label for="compare-with"><b>A</b>, what is selected here, against <b>B</b>:</label>
      <select id="compare-with" value={choice} onChange={(event) => chosen(event.currentTarget.value as Choice)}>
        {Object.entries(CHOICES).map(([value, text]) => <option key={value} value={value}>{text}</option>)}
      </select>
      {choice === 'time' && <OtherTime params={params} change={change} setWrong={setWrong} />}
      {choice === 'values' && <TwoValues params={params} range={range} change={change} setWrong={setWrong} />}
      {other && <button type="button" onClick={() => change(other)}>⇄ exchange A and B</button>}
      {wrong && <span class="compare-wrong" role="alert">{wrong}</span>}
    </div>
  )
}

type FormProps = Omit<Props, 'range'> & { setWrong: (text: string) => void }

function OtherTime({ params, change, setWrong }: FormProps) {
  const { zone } = useShared()
  const shown = (name: string) => {
    const ms = Date.parse(params.get(name) ?? '')
    return Number.isNaN(ms) ? '' : fieldOf(ms, zone)
  }
  const [from, setFrom] = useState(shown('compare_from'))
  const [to, setTo] = useState(shown('compare_to'))
  const submitted = (event: Event) => {
    event.preventDefault()
    const [start, end] = [parseField(from, zone), parseField(to, zone)]
    if (start === null || end === null) return setWrong('Both ends need a day and a time that exist in this zone.')
    if (start >= end) return setWrong('The end is not after the beginning.')
    change(withoutSides(params).with({ compare_from: new Date(start).toISOString(), compare_to: new Date(end).toISOString() }))
  }
  return (
    <form class="bar compare-form" onSubmit={submitted}>
      <label>from <input type="datetime-local" step="1" value={from} onInput={(event) => setFrom(event.currentTarget.value)} /></label>
      <label>to <input type="datetime-local" step="1" value={to} onInput={(event) => setTo(event.currentTarget.value)} /></label>
      <button type="submit">compare</button>
    </form>
  )
}

function TwoValues({ params, range, change, setWrong }: FormProps & { range: Range }) {
  const chosen = valuesOf(params)
  const [key, setKey] = useState(chosen?.key ?? 'model')
  const [a, setA] = useState(chosen?.a ?? params.get('model') ?? '')
  const [b, setB] = useState(chosen?.b ?? '')
  const times = Object.fromEntries(within(range))
  const isKey = KEYS.includes(key) || (key.startsWith('attr.') && key.length > 'attr.'.length)
  const path = `./values${query([['key', key], ['limit', '50'], ...Object.entries(times)])}`
  const values = useAnswer(isKey ? path : null, (options) => getJson<HeldValues>(path, options))
  const submitted = (event: Event) => {
    event.preventDefault()
    if (!isKey) return setWrong(`${key}: is none of ${KEYS.join(', ')}, attr.<key>`)
    if (!a || !b) return setWrong('Both sides need a value.')
    if (a === b) return setWrong('Both sides have the same value.')
    change(withValues(params, key, a, b))
  }
  return (
    <form class="bar compare-form" onSubmit={submitted}>
      <label>of <input list="compare-keys" size={12} value={key} onInput={(event) => setKey(event.currentTarget.value)} /></label>
      <datalist id="compare-keys">{KEYS.map((name) => <option key={name} value={name} />)}<option value="attr.version" /></datalist>
      <label>A <input list="compare-values" size={16} value={a} onInput={(event) => setA(event.currentTarget.value)} /></label>
      <label>B <input list="compare-values" size={16} value={b} onInput={(event) => setB(event.currentTarget.value)} /></label>
      <datalist id="compare-values">{isKey && values.data?.values.map((held) => <option key={held.value} value={held.value} />)}</datalist>
      <button type="submit">compare</button>
    </form>
  )
}
