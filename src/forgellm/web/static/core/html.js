/** The few names that every component needs, from one place. */
import { h, render, Fragment } from 'preact';
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from 'preact/hooks';
import { batch, computed, effect, signal, useComputed, useSignal } from '@preact/signals';
import htm from 'htm';

/** Tagged template for elements: html`<p class="note">${text}</p>`. Text is never read as HTML. */
export const html = htm.bind(h);

export {
    batch, computed, effect, Fragment, render, signal, useCallback, useComputed, useEffect,
    useLayoutEffect, useMemo, useRef, useSignal, useState,
};
