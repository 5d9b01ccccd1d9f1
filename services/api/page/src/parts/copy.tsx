import { useShared } from './app'

/** A button that copies a text. */
export function Copy({ text, what }: { text: () => string; what: string }) {
  const { say } = useShared()
  const copy = () => {
    // A browser has a clipboard on https and on this machine only.
    if (!navigator.clipboard) return say('The browser lets no page copy here; select the text instead.')
    void navigator.clipboard.writeText(text()).then(() => say(`Copied: ${what}`), () => say('The browser refused to copy'))
  }
  return <button type="button" aria-label={`copy ${what}`} title={`copy ${what}`} onClick={copy}>copy</button>
}
