/** Vendored modules whose types we do without. */
declare const anything: any;
export default anything;
