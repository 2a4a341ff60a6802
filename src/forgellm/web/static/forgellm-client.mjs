/** forgellm-client.js as an ES module. */
import './forgellm-client.js';

export const { ForgeLLMClient, ForgeLLMError } = /** @type {any} */ (globalThis);
export default ForgeLLMClient;
