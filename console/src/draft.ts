// What is entered in a form, while the stored entry may be changed by others.

import { useEffect, useState } from "react";

const equal = (one: unknown, other: unknown) => JSON.stringify(one) === JSON.stringify(other);

/** A draft of `stored`. A change of the stored one is taken over unless something has been entered; then the operator decides. */
export function useDraft<Draft>(stored: Draft) {
  const [base, setBase] = useState(stored);
  const [draft, setDraft] = useState(stored);
  const changed = !equal(draft, base);
  const moved = !equal(stored, base);
  const take = () => {
    setBase(stored);
    setDraft(stored);
  };
  useEffect(() => {
    if (moved && (!changed || equal(draft, stored))) take();
  });
  return {
    draft,
    set: (changes: Partial<Draft>) => setDraft((now) => ({ ...now, ...changes })),
    changed,
    /** The stored one differs from what the draft was begun with. */
    conflict: moved && changed,
    keep: () => setBase(stored),
    take,
  };
}

/** The attributes of an input for one field of a draft. */
export function textInput<Draft>(draft: Draft, set: (changes: Partial<Draft>) => void) {
  return (key: keyof Draft) => ({
    value: String(draft[key]),
    onChange: (event: { target: { value: string } }) => set({ [key]: event.target.value } as Partial<Draft>),
    spellCheck: false,
    autoComplete: "off",
  });
}
