/** The REST API of the server this page came from. Failures are thrown as ForgeLLMError. */
import { ForgeLLMClient, ForgeLLMError } from '/static/forgellm-client.mjs';

export { ForgeLLMError };

/** One method per route; see forgellm-client.js. */
export const api = new ForgeLLMClient('', { throwErrors: true });

/**
 * Anything that was thrown, or an error envelope that a job or a run keeps, as an error to show. The browser's own words for a server that is not
 * there ("Failed to fetch") help nobody.
 * @param {any} error
 * @returns {{message: string, code: string, suggestion: string, details: Record<string, any>}}
 */
export function shown(error) {
    if (error instanceof ForgeLLMError) return error;
    if (error?.error_code) return new ForgeLLMError(error);
    if (error instanceof TypeError && /fetch|network|load failed/i.test(error.message)) {
        return {
            message: 'The server does not answer',
            code: 'SERVER_UNREACHABLE',
            suggestion: 'Start it again with: forgellm start. Runs go on without it.',
            details: {},
        };
    }
    return { message: String(error?.message ?? error), code: '', suggestion: '', details: {} };
}
