// What was said to a model and by it.

import { getJson } from '../api/client'
import { exactCount, plain } from '../core/format'
import { instant } from '../core/time'
import { useAnswer, useShared } from './app'
import { LongText } from './attributes'
import { Copy } from './copy'
import { State } from './states'

type Part = { type: string; text: string; name?: string; base64_length?: number }
type Message = {
  direction: 'input' | 'output' | 'chat'
  role: string
  parts: Part[]
  source: string
  redactions: number
  is_redacted: boolean
  created_at: string | null
}
export type SpanMessages = { trace_id: string; span_id: string; messages: Message[] }

const DIRECTIONS = { input: 'sent', output: 'answered', chat: 'chat' }

export function Messages({ path }: { path: string }) {
  const { zone } = useShared()
  const answer = useAnswer(path, (options) => getJson<SpanMessages>(path, options).then((found) => ({ path, found })))
  const isCurrent = answer.data?.path === path
  if (!answer.data || (!isCurrent && answer.error)) return <State answer={{ ...answer, data: null }} />
  const { messages } = answer.data.found
  if (!messages.length) {
    return (
      <p class={isCurrent ? undefined : 'stale'}>
        The span has no messages. The reporter keeps them with <code>capture="messages"</code>; attributes such as{' '}
        <code>gen_ai.input.messages</code> are shown here as well.
      </p>
    )
  }
  return (
    <div key={answer.data.path} class={isCurrent ? undefined : 'stale'}>
      {messages.map((message, at) => (
        <section class="message" key={at} aria-label={`${plain(message.role)}, message ${at + 1} of ${messages.length}`}>
          <div class="bar">
            <h3>{plain(message.role)}</h3>
            <span class="dim" title={`from ${plain(message.source)}`}>{DIRECTIONS[message.direction]}</span>
            {message.created_at && <span class="dim">{instant(Date.parse(message.created_at), zone)}</span>}
            {message.is_redacted && <span class="removed">{message.redactions ? `${exactCount(message.redactions)} removed` : 'something removed'}</span>}
            <Copy text={() => message.parts.map((part) => part.text).join('\n')} what={`the message of ${plain(message.role)}`} />
          </div>
          {message.parts.map((part, each) => <Shown key={each} part={part} />)}
        </section>
      ))}
    </div>
  )
}

function Shown({ part }: { part: Part }) {
  if (part.type === 'media') {
    const size = part.base64_length ? `, ${exactCount(part.base64_length)} characters of base64` : ''
    return <p class="dim">{plain(part.name || 'media')}{size}, not shown{part.text && <>: {plain(part.text)}</>}</p>
  }
  return (
    <>
      {part.type !== 'text' && <p class="dim">{part.type.replaceAll('_', ' ')}{part.name && <> <strong>{plain(part.name)}</strong></>}</p>}
      <pre><LongText text={part.text} /></pre>
    </>
  )
}
