// The mark of a status, so that it is never told by colour alone.

const MARKS: Record<string, string> = { error: '✕ ', timeout: '◷ ', pending: '… ', abandoned: '⌛ ' }

export function mark(status: string): string {
  return MARKS[status] ?? ''
}
