/** Data that a view asks the server for. */
import { useCallback, useEffect, useRef, useState } from './html.js';
import { shown } from './api.js';

/**
 * What `ask` resolves to, asked again when one of `inputs` changes or on `reload()`. While it is
 * asked again the former data stays, so that a view does not flicker.
 * @template T
 * @param {() => Promise<T>} ask
 * @param {any[]} inputs
 * @returns {{data: T | undefined, error: ReturnType<typeof shown> | undefined, isLoading: boolean, reload: () => void}}
 */
export function useResource(ask, inputs = []) {
    const [state, setState] = useState(/** @type {{data: T | undefined, error: any, isLoading: boolean}} */ ({ data: undefined, error: undefined, isLoading: true }));
    const [count, setCount] = useState(0);
    const last = useRef(0);
    useEffect(() => {
        const number = ++last.current;
        const isLatest = () => number === last.current;
        setState((before) => ({ ...before, isLoading: true }));
        ask().then(
            (data) => isLatest() && setState({ data, error: undefined, isLoading: false }),
            (error) => isLatest() && setState((before) => ({ ...before, error: shown(error), isLoading: false })),
        );
        return () => void last.current++;
    }, [...inputs, count]);
    const reload = useCallback(() => setCount((before) => before + 1), []);
    return { ...state, reload };
}

/** `value`, but only after it has rested for `milliseconds`: for what is asked while one types. */
export function useRested(value, milliseconds = 300) {
    const [rested, setRested] = useState(value);
    useEffect(() => {
        const timer = setTimeout(() => setRested(value), milliseconds);
        return () => clearTimeout(timer);
    }, [value, milliseconds]);
    return rested;
}
