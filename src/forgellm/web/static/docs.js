// The page at /docs: Swagger UI on this server's own document.
window.ui = SwaggerUIBundle({
  url: '/openapi.json',
  dom_id: '#api',
  deepLinking: true,
  docExpansion: 'list',
  validatorUrl: null, // else it would send the document to another site
});
