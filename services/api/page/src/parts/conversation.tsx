// The messages of a session, oldest first, each with its span. Everything is text.

import { useMemo } from 'preact/hooks'
import type { GraphNode, Message, Session } from '../api/sessions'
import { cut, exactCount, plain } from '../core/format'
import { address } from '../core/route'
import { allAbout, shortInstant } from '../core/time'
import { useShared } from './app'
import { LongText } from './attributes'
import { Copy } from './copy'

export const MESSAGES_ON_A_PAGE = 50
/** Longest part of a message that is shown without being asked for, characters. */
const MOST_TEXT = 1000

type Props = {
  session: Session
  /** Number of messages before those that are shown. */
  offset: number
  /** The spans of the session; null = they are not known yet. */
  nodes: readonly GraphNode[] | null
  /** Selects a span by its name in an address. */
  choose: (span: string) => void
  turn: (offset: number) => void
}

export function Conversation({ session, offset, nodes, choose, turn }: Props) {
  const { messages, messageCount } = session
  const spans = useMemo(() => {
    const known = new Map<string, GraphNode>()
    for (const node of nodes ?? []) {
      known.set(`${node.trace_id}\n${node.id}`, node)
      if (!known.has(node.id)) known.set(node.id, node)
    }
    return known
  }, [nodes])
  const next = offset + messages.length
  return (
    <section aria-label="Conversation">
      <h2>Conversation {messageCount > 0 && <span class="dim">{exactCount(messageCount)} {messageCount === 1 ? 'message' : 'messages'}</span>}</h2>
      {!messageCount && <p class="dim">No message was recorded for this session.</p>}
      {messageCount > 0 && !messages.length && <p>There are only {exactCount(messageCount)} messages.</p>}
      {messages.length > 0 && (
        <ol class="session-messages" tabIndex={0} aria-label="Messages" start={offset + 1}>
          {messages.map((message, at) => (
            <Shown key={`${message.messageId}/${offset + at}`} message={message} choose={choose}
              span={spans.get(`${message.trace_id ?? ''}\n${message.traceId}`) ?? spans.get(message.traceId)} />
          ))}
        </ol>
      )}
      {(offset > 0 || next < messageCount) && (
        <nav class="bar" aria-label="Pages of messages">
          <button type="button" disabled={offset <= 0} onClick={() => turn(Math.max(offset - MESSAGES_ON_A_PAGE, 0))}>‹ earlier</button>
          <span>{messages.length ? `${exactCount(offset + 1)} to ${exactCount(next)}` : 'none'} of {exactCount(messageCount)}</span>
          <button type="button" disabled={next >= messageCount} onClick={() => turn(next)}>later ›</button>
        </nav>
      )}
    </section>
  )
}

function Shown({ message, span, choose }: { message: Message; span: GraphNode | undefined; choose: (span: string) => void }) {
  const { zone } = useShared()
  const now = Date.now()
  const at = Date.parse(message.createdAt)
  const { content } = message
  return (
    <li class={`session-message role-${message.role}`}>
      <div class="session-message-head">
        <strong>{plain(message.role)}</strong>{' '}
        <span class="dim" title={allAbout(at, now, zone)}>{shortInstant(at, now, zone)}</span>{' '}
        {message.isRedacted && <span class="removed" title="secrets or personal data were removed before it was stored">redacted</span>}{' '}
        {span ? <button type="button" class="session-span" onClick={() => choose(`${span.trace_id}/${span.id}`)}>span {plain(cut(span.name, 60)) || '(no name)'}</button>
          : message.traceId && message.trace_id ? <a href={address('trace', message.trace_id, [['span', message.traceId]])}>span {plain(cut(message.traceId, 40))}</a>
            : message.traceId ? <span class="dim">span {plain(cut(message.traceId, 40))}, not stored</span> : null}
        <Copy text={() => content} what={`the message of ${plain(message.role)}`} />
      </div>
      {content ? (
        <div class="session-text">
          <LongText text={content} most={MOST_TEXT} />
        </div>
      ) : <div class="dim">{message.fullContentStored ? '(empty)' : 'The text of messages is not kept here.'}</div>}
    </li>
  )
}
