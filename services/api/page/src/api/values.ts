// The answers of GET /values and GET /keys.

import type { HeldKey, HeldValue } from '../core/filter_menu'

export type HeldValues = { key: string; values: HeldValue[]; more: boolean; searched_until?: string }
export type HeldKeys = { keys: HeldKey[]; more: boolean; searched_until?: string }
