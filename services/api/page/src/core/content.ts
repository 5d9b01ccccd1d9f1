// How foreign content is shown: what is too long is cut, base64 is named instead, and marks of removed text are found.

/** Longest text that is shown without being asked for, characters. */
export const MOST_TEXT = 10_000

const BASE64 = /^(?:data:[\w.+\/;=-]{0,100}base64,)?[A-Za-z0-9+/_-]{512,}={0,2}$/

/** True for a text that is nothing but base64, alone or as a `data:` address: it says nothing to a reader. */
export function isBase64(text: string): boolean {
  // Numbers and words can be as long, but they have no capital letter, small letter and digit together.
  return BASE64.test(text) && /[A-Z]/.test(text) && /[a-z]/.test(text) && /\d/.test(text)
}

/** A text as pieces, of which those that `isMark` say that something was removed there. */
export function marked(text: string): { text: string; isMark: boolean }[] {
  return text
    .split(/(\[(?:[A-Z_]+_)?REDACTED\])/)
    .map((piece, at) => ({ text: piece, isMark: at % 2 === 1 }))
    .filter((piece) => piece.text)
}

/** The lines of *value* as JSON; its long texts are cut unless *all*, and base64 is always named by its length. */
export function jsonLines(value: unknown, all: boolean, cut: (text: string, most: number) => string): { lines: string[]; isCut: boolean } {
  let isCut = false
  const text = JSON.stringify(value, (_, part: unknown) => {
    if (typeof part !== 'string') return part
    if (isBase64(part)) return `base64, ${part.length} characters`
    if (all || part.length <= MOST_TEXT) return part
    isCut = true
    return cut(part, MOST_TEXT)
  }, 2)
  return { lines: text.split('\n'), isCut }
}
