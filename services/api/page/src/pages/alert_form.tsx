// The form of a rule, new or edited, beside a preview of what it would have done.

import { useState } from 'preact/hooks'
import { rulePath, type Written } from '../api/alerts'
import { send } from '../api/client'
import { DELIVERY_FIELDS, errorOf, ruleOf, unitOf, type Draft } from '../core/alerts'
import { plain } from '../core/format'
import { useShared } from '../parts/app'
import { Field, Lines, type Choices } from './alert_fields'
import { Preview } from './alert_preview'
import { messageOf } from './alert_row'

const OPS: Choices = [['gt', '> above'], ['gte', '≥ at or above'], ['lt', '< below'], ['lte', '≤ at or below']]
const LEVELS: Choices = [['warning', 'warning'], ['critical', 'critical']]
const CHANGES: Choices = [['', 'the value itself'], ['absolute', 'its change, as a number'], ['percent', 'its change, in percent']]
const NO_DATA: Choices = [['', 'resolve (ignore)'], ['fire', 'fire'], ['keep', 'keep the state']]
const UNPRICED: Choices = [['', 'leave them out (ignore)'], ['fire', 'fire']]
const TYPES: Choices = [['', 'none: publish only'], ['webhook', 'webhook'], ['alertmanager', 'Alertmanager'], ['stdout', 'output of the alerter']]
const FORMATS: Choices = [['', 'tokentrace'], ['alertmanager', 'alertmanager']]
const WINDOWS = ['1m', '5m', '15m', '1h', '6h', '24h', '7d']
const DETAILS = ['for', 'cooldown', 'recovery_threshold', 'min_spans', 'eval_interval', 'change', 'no_data', 'unpriced', 'silenced']
const MONEY = new Set(['usd', 'usd/call'])

/**
 * *name* is that of the rule that is edited, null = a new one; *hidden* are the keys whose values the server keeps without
 * showing them. *saved* is called with the name.
 */
export function RuleForm({ draft: first, name, hidden, saved, cancel }: {
  draft: Draft; name: string | null; hidden: readonly string[]; saved: (name: string) => void; cancel: () => void
}) {
  const { about } = useShared()
  const [draft, setDraft] = useState(first)
  const [problem, setProblem] = useState('')
  const [previewProblem, setPreviewProblem] = useState('')
  const [isSending, setSending] = useState(false)
  const metrics = about?.metrics ?? []
  const metric = draft.texts.metric ?? ''
  const unit = unitOf(metric, metrics)
  const type = draft.texts['delivery.type'] ?? ''
  // What was refused on saving counts until the form changes; then what the preview says.
  const error = errorOf(problem || previewProblem)
  const shown: string[] = []
  const change = (next: Draft) => {
    setDraft(next)
    setProblem('')
  }
  const put = (field: string, text: string) => change({ ...draft, texts: { ...draft.texts, [field]: text } })
  const field = (key: string, label: string, hint: string, more: { choices?: Choices; options?: readonly string[]; flag?: boolean; secret?: boolean; readOnly?: boolean } = {}) => {
    shown.push(key)
    return (
      <Field key={key} id={`rule-${key}`} label={label} hint={hidden.includes(key) ? `${hint}; kept if unchanged` : hint}
        value={draft.texts[key] ?? ''} put={(text) => put(key, text)} error={error.field === key ? error.text : ''} {...more} />
    )
  }
  const lines = (key: 'filter' | 'headers', id: string, label: string, hint: string) => {
    const path = key === 'filter' ? 'filter' : 'delivery.headers'
    shown.push(path)
    return <Lines id={id} label={label} hint={hint} lines={draft[key]} put={(next) => change({ ...draft, [key]: next })} isFilter={key === 'filter'}
      error={error.field === path ? error.text : ''} />
  }
  const save = async (event: Event) => {
    event.preventDefault()
    const rule = ruleOf(draft)
    setSending(true)
    try {
      const answer = await (name === null ? send('POST', './alerts', rule) : send('PUT', rulePath(name), rule))
      const { name: own } = (await answer.json()) as { name: string }
      saved(own)
    } catch (caught) {
      setProblem(messageOf(caught))
      // What the error is about may be far up the form.
      requestAnimationFrame(() => document.querySelector<HTMLElement>('.alerts-rule [aria-invalid="true"]')?.focus())
    } finally {
      setSending(false)
    }
  }
  const has = (key: string) => DELIVERY_FIELDS[type]?.includes(key)
  const limit = { usd: 'US dollars', 'usd/call': 'US dollars a call', milliseconds: 'milliseconds', share: 'a share: 0.05 is 5 %', score: 'a score from 0 to 1' }[unit as string] ?? unit
  const form = (
    <form class="alerts-form alerts-rule" onSubmit={(event) => void save(event)}>
      <fieldset>
        <legend>What is watched</legend>
        {field('name', 'name', 'up to 128 characters', { readOnly: name !== null })}
        {field('metric', 'metric', 'a metric of the list, or attr.<key>:avg, :sum, :count, :p50 or :p95', {
          options: metrics.filter((each) => each.is_for_rules).map((each) => each.name),
        })}
        {field('op', 'fires if it is', '', { choices: OPS })}
        {field('threshold', 'threshold', draft.texts.change === 'percent' ? 'percent' : limit === 'any' ? 'a number' : limit)}
        {field('window', 'over the last', 'such as 5m, 1h or 7d', { options: WINDOWS })}
        {lines('filter', 'rule-filter', 'only spans with', 'a dimension or attribute and its value')}
        {field('group_by', 'separately for each', 'a dimension such as model or user_id, or attr.<key>; empty = all spans together', { options: ['model', 'provider', 'caller', 'name', 'user_id', 'session_id'] })}
      </fieldset>
      <fieldset>
        <legend>Who is told</legend>
        {field('level', 'severity', '', { choices: LEVELS })}
        {field('delivery.type', 'deliver to', 'every event is published on NATS as well', { choices: type === 'http' ? [...TYPES, ['http', 'webhook (http)']] : TYPES })}
        {has('url') && field('delivery.url', 'URL', type === 'alertmanager' ? 'without /api/v2/alerts' : 'of the webhook')}
        {has('send_resolved') && field('delivery.send_resolved', 'also deliver the end', '', { flag: true })}
        {has('format') && field('delivery.format', 'form of the body', '', { choices: FORMATS })}
        {has('secret') && field('delivery.secret', 'secret', 'signs each request; empty = no signature', { secret: true })}
        {has('headers') && lines('headers', 'rule-headers', 'headers', 'of each request')}
        {has('timeout') && field('delivery.timeout', 'timeout', '10ms to 1m; 5s if empty')}
        {has('max_retries') && field('delivery.max_retries', 'attempts after the first', '12 if empty')}
      </fieldset>
      <details open={isDetailed(first) || DETAILS.includes(error.field)}>
        <summary>When exactly</summary>
        <fieldset>
          <legend class="unseen">When exactly</legend>
          {field('for', 'must hold for', 'such as 2m; empty = fire at once')}
          {field('cooldown', 'fire again after', 'while it lasts; the window if empty')}
          {field('recovery_threshold', 'resolve at', 'another threshold for the end; the same if empty')}
          {field('min_spans', 'spans needed', 'with fewer the rule changes nothing')}
          {field('eval_interval', 'look every', 'a tenth of the window if empty, at least 30s')}
          {field('change', 'compare', 'a change is against the window before', { choices: CHANGES })}
          {field('no_data', 'without data', '', { choices: NO_DATA })}
          {(MONEY.has(unit) || draft.texts.unpriced) && field('unpriced', 'spans of unknown cost', '', { choices: UNPRICED })}
          {field('silenced', 'silenced: evaluate, but publish nothing', '', { flag: true })}
        </fieldset>
      </details>
      {(problem || previewProblem) && !shown.includes(error.field) && <p class="note error" role="alert">{plain(error.text)}</p>}
      <div class="bar">
        <button type="submit" disabled={isSending}>{name === null ? 'create' : 'save'}</button>
        <button type="button" onClick={cancel}>cancel</button>
        {name !== null && <span class="dim">Changes of more than delivery, cooldown, interval and silenced end an open episode, and the rule starts anew.</span>}
      </div>
    </form>
  )
  const rule: Written = ruleOf(draft)
  const isAsked = !!metric.trim() && !!(draft.texts.threshold ?? '').trim()
  return (
    <div class="alerts-edit">
      {form}
      <Preview rule={isAsked ? { name: 'preview', ...rule } : null} unit={unit} failed={setPreviewProblem} />
    </div>
  )
}

/** True if a rule has one of the fields that are folded at first. */
function isDetailed(draft: Draft): boolean {
  return DETAILS.some((key) => draft.texts[key])
}
