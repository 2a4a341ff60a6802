/**
 * ForgeLLM's REST API for JavaScript: browsers and Node 18 or newer, without dependencies.
 *
 *     <script src="/static/forgellm-client.js"></script>          sets globalThis.ForgeLLMClient
 *     import { ForgeLLMClient } from '/static/forgellm-client.mjs'
 *     const { ForgeLLMClient } = require('./forgellm-client.js')  CommonJS
 *
 * Each method is one route and resolves to the server's reply. A failure is a reply too: `success`
 * is false, and `error`, `error_code`, `details` and `suggestion` say why. Streams throw a
 * ForgeLLMError instead, and so does everything with the option `throwErrors`.
 *
 * It is one file because a plain script cannot import: it sets its global before the next one runs.
 */
(function () {
    'use strict';

    /** An error envelope as an exception. */
    class ForgeLLMError extends Error {
        constructor(envelope) {
            super(envelope.error);
            this.name = 'ForgeLLMError';
            this.code = envelope.error_code;
            this.details = envelope.details ?? {};
            this.suggestion = envelope.suggestion ?? '';
        }
    }

    class ForgeLLMClient {
        /**
         * @param {string} baseUrl
         * @param {{throwErrors?: boolean, token?: string}} options `token` is for a server on
         *     another machine, as it was printed there.
         */
        constructor(baseUrl = 'http://localhost:5002', { throwErrors = false, token } = {}) {
            this.baseUrl = baseUrl.replace(/\/+$/, '');
            this.throwErrors = throwErrors;
            this.headers = token ? { Authorization: `Bearer ${token}` } : {};
        }

        // Training

        /** Start a run of a recipe; the reply has `training_id` and `output_dir`. */
        startTraining(config) {
            return this.#post('/api/training/start', config);
        }

        /** The run that trains, else the last one. */
        getTrainingStatus() {
            return this.#get('/api/training/status');
        }

        stopTraining() {
            return this.#post('/api/training/stop');
        }

        /** Continue a run from its newest intact checkpoint. */
        resumeTraining(trainingId) {
            return this.#post('/api/training/resume', { training_id: trainingId });
        }

        /** Make a model of a checkpoint; with `{ async: true }` the reply is a job, at once. */
        publishCheckpoint(checkpointPath, trainingDir, options = {}) {
            const body = { checkpoint_path: checkpointPath, training_dir: trainingDir, ...options };
            return this.#post('/api/training/publish_checkpoint', body);
        }

        /** The fields that a recipe's text (YAML or JSON) names, checked. */
        parseRecipe(text) {
            return this.#post('/api/recipes/parse', { text });
        }

        /** Memory, disk and time of a recipe, without starting it. */
        estimate(config) {
            return this.#post('/api/estimate', config);
        }

        /** Names and addresses of the machines in `hosts.toml`; they are not contacted. */
        listHosts() {
            return this.#get('/api/hosts');
        }

        /**
         * A run's updates as they come, the last of them its end; without an id, the current run's.
         * Each has `event`: `training_update` for each line of the run's metrics, from its first
         * one on, then `training_complete` or `training_error`.
         */
        async *trainingEvents(trainingId, { pollMilliseconds = 1000 } = {}) {
            const wanted = trainingId ?? checked(await this.getTrainingStatus()).training_id;
            if (wanted === null) {
                const error = 'There is no run to follow';
                throw new ForgeLLMError({ error, error_code: 'NO_ACTIVE_TRAINING' });
            }
            const most = checked(await this.getRun(wanted)).run.max_iterations;
            for (let offset = 0; ; ) {
                // The state first: a trainer writes its last line before its last state.
                const status = checked(await this.getTrainingStatus());
                const isCurrent = status.is_training && status.training_id === wanted;
                const details = isCurrent ? null : checked(await this.getRun(wanted));
                for (let hasMore = true; hasMore; ) {
                    const read = checked(await this.runMetrics(wanted, { offset }));
                    [offset, hasMore] = [read.next_offset, read.has_more];
                    const now = isCurrent ? status : null;
                    for (const line of read.metrics) yield updateOf(wanted, line, most, now);
                }
                const end = details && endOf(wanted, details);
                if (end) {
                    yield end;
                    return;
                }
                await new Promise((resolve) => setTimeout(resolve, pollMilliseconds));
            }
        }

        // Runs, by name or training_id

        /** Newest first; filters are `phase`, `type`, `limit` and `offset`. */
        listRuns(filters = {}) {
            return this.#get('/api/runs', filters);
        }

        getRun(name) {
            return this.#get(`/api/runs/${part(name)}`);
        }

        /** `metrics`, and in `next_offset` where to go on; options are `offset` and `since_seq`. */
        runMetrics(name, options = {}) {
            return this.#get(`/api/runs/${part(name)}/metrics`, options);
        }

        /** The end of the trainer's log. */
        runLog(name, lines) {
            return this.#get(`/api/runs/${part(name)}/log`, { lines });
        }

        /** What it measured of its model, and what the model answered, at each checkpoint. */
        runEvaluations(name) {
            return this.#get(`/api/runs/${part(name)}/evaluations`);
        }

        resumeRun(name) {
            return this.#post(`/api/runs/${part(name)}/resume`);
        }

        /** Its recipe with other values in it, for startTraining; nothing is started. */
        cloneRun(name, overrides = {}) {
            return this.#post(`/api/runs/${part(name)}/clone`, { overrides });
        }

        renameRun(name, newName) {
            return this.#post(`/api/runs/${part(name)}/rename`, { name: newName });
        }

        /** Move a run to the trash. */
        deleteRun(name) {
            return this.#delete(`/api/runs/${part(name)}`);
        }

        /** For good; the run must not be training. */
        deleteCheckpoint(name, iteration) {
            return this.#delete(`/api/runs/${part(name)}/checkpoints/${part(iteration)}`);
        }

        compareRuns(names) {
            return this.#get('/api/compare', { runs: names.join(',') });
        }

        listTrash() {
            return this.#get('/api/trash');
        }

        /** `name` is that of listTrash. */
        restoreRun(name) {
            return this.#post('/api/trash/restore', { name });
        }

        /** Delete for good what is in the trash. */
        emptyTrash() {
            return this.#delete('/api/trash');
        }

        /** Runs that wait for their turn. */
        queue() {
            return this.#get('/api/queue');
        }

        leaveQueue(name) {
            return this.#delete(`/api/queue/${part(name)}`);
        }

        /** Train one recipe after another, each from the run before it; fields are their defaults. */
        startChain(stages, fields = {}) {
            return this.#post('/api/chains', { stages, ...fields });
        }

        listChains() {
            return this.#get('/api/chains');
        }

        getChain(name) {
            return this.#get(`/api/chains/${part(name)}`);
        }

        /** Go on with the stage that failed or was stopped. */
        continueChain(name) {
            return this.#post(`/api/chains/${part(name)}/continue`);
        }

        /** Forget it; its runs stay. */
        deleteChain(name) {
            return this.#delete(`/api/chains/${part(name)}`);
        }

        // Models

        /**
         * Begin loading; the reply comes at once, and generating waits until it is there. With
         * `{ beside: true }` what is loaded stays, if memory suffices.
         */
        loadModel(modelName, adapterPath, options = {}) {
            const body = { model_name: modelName, adapter_path: adapterPath, ...options };
            return this.#post('/api/model/load', body);
        }

        modelStatus() {
            return this.#get('/api/model/status');
        }

        /** Free the memory of one model, or without a name of all. */
        unloadModel(modelName, adapterPath) {
            const body = { model_name: modelName, adapter_path: adapterPath };
            return this.#post('/api/model/unload', modelName && body);
        }

        /**
         * Load the model, unless none is named, and answer; the reply has `response`. With `beside`
         * it is loaded beside others, which may answer at the same time.
         * @param {string} prompt
         * @param {string} [modelName]
         * @param {any} [options]
         */
        async generateText(prompt, modelName, { adapterPath, beside, ...options } = {}) {
            if (modelName) {
                const loading = await this.loadModel(modelName, adapterPath, { beside });
                if (!loading.success) return loading; // else the model before would answer
            }
            const named = { model_name: modelName, adapter_path: adapterPath };
            const body = { prompt, ...named, ...options, streaming: false };
            return this.#post('/api/model/generate', body);
        }

        /**
         * As generateText, in pieces as they are made. Leaving the loop stops the answer.
         * @param {string} prompt
         * @param {string} [modelName]
         * @param {any} [options]
         */
        async *streamText(prompt, modelName, { adapterPath, beside, ...options } = {}) {
            if (modelName) {
                const loading = await this.loadModel(modelName, adapterPath, { beside });
                if (!loading.success) throw new ForgeLLMError(loading);
            }
            const named = { model_name: modelName, adapter_path: adapterPath };
            const body = { prompt, ...named, ...options, streaming: true };
            const reply = await this.#send('/api/model/generate', postOf(body));
            if (!reply.ok) throw new ForgeLLMError(await reply.json());
            for await (const item of itemsOf(reply.body)) {
                if (item.type === 'error') throw new ForgeLLMError(item);
                if (item.type === 'done') return;
                if (item.text) yield item.text; // nothing while a character is incomplete
            }
            throw new ForgeLLMError({ error: 'The answer broke off', error_code: 'UNAVAILABLE' });
        }

        /** End the answer with this `request_id`; without one, every answer. */
        cancelGeneration(requestId) {
            return this.#post('/api/model/cancel', { request_id: requestId });
        }

        /** What is on this machine. */
        listModels() {
            return this.#get('/api/models');
        }

        /** Models on this machine whose name contains every word of the query. */
        searchModels(query) {
            return this.#get('/api/models/search', { q: query });
        }

        /** Bring a model from the hub; the reply has the `job_id`, at once. */
        downloadModel(modelName, revision = 'main') {
            return this.#post('/api/models/download', { model_name: modelName, revision });
        }

        /** Send `published/NAME` or `exported/NAME` to the hub; options are `private`, `dry_run`. */
        pushModel(modelName, repoId, options = {}) {
            return this.#post('/api/models/push', { ...options, model_name: modelName, repo_id: repoId });
        }

        /**
         * Write the model in another format to models/exported/; the reply has the `job_id`, at once.
         * `format` is gguf, or peft, mlx or gguf-lora for the adapter of a run (RUN or RUN@300).
         */
        exportModel(modelName, { format = 'gguf', type = 'Q8_0' } = {}) {
            return this.#post('/api/models/export', { model_name: modelName, format, type });
        }

        /** Round a model's weights to a model in models/published/; the reply has the `job_id`, at once. */
        quantizeModel(modelName, { bits = 4, group_size = 64 } = {}) {
            return this.#post('/api/models/quantize', { model_name: modelName, bits, group_size });
        }

        /** What lies in models/exported/, newest first. */
        listExports() {
            return this.#get('/api/models/exports');
        }

        /** Delete an export for good. */
        deleteExport(name) {
            return this.#delete(`/api/models/exports/${part(name)}`);
        }

        /** What was made from what, with the commands that would make it again. */
        modelsTree() {
            return this.#get('/api/models/tree');
        }

        /**
         * Combine adapters of one model (RUN or RUN@ITERATION) to published/NAME, as a job.
         * Options are `method`, `weights`, `density` and `seed`.
         */
        combineAdapters(checkpoints, name, options = {}) {
            return this.#post('/api/models/combine', { checkpoints, name, ...options });
        }

        /** Delete a base, downloaded or published model for good. */
        deleteModel(name) {
            return this.#delete(`/api/models/${name.split('/').map(part).join('/')}`);
        }

        /** Bring the demo's model and documents; the job's result has the recipe to start. */
        prepareDemo() {
            return this.#post('/api/demo/prepare');
        }

        // Conversations: { title, system, settings, panes, messages, leaf }

        /** Those with every word of `q`, the last changed first; options are `q`, `limit`, `offset`. */
        listConversations(options = {}) {
            return this.#get('/api/conversations', options);
        }

        /** The reply has its `id` and `revision`. */
        createConversation(conversation) {
            return this.#post('/api/conversations', conversation);
        }

        getConversation(id) {
            return this.#get(`/api/conversations/${part(id)}`);
        }

        /** Put it in the place of the `revision` that it has; a conflict where that has changed. */
        saveConversation(id, conversation) {
            return this.#put(`/api/conversations/${part(id)}`, conversation);
        }

        deleteConversation(id) {
            return this.#delete(`/api/conversations/${part(id)}`);
        }

        /** The lines of the export as `rows`; of format `messages` they are rows to train on. */
        async exportConversations(format = 'conversations') {
            const response = await this.#send(`/api/conversations/export?format=${format}`, {});
            if (!response.ok) return this.#reply(response);
            const lines = (await response.text()).split('\n').filter(Boolean);
            return { success: true, rows: lines.map((line) => JSON.parse(line)) };
        }

        /** `rows` as exported in either format; the reply has their new ids. */
        importConversations(rows) {
            return this.#post('/api/conversations/import', { rows });
        }

        // Jobs: downloads and publishing

        listJobs() {
            return this.#get('/api/jobs');
        }

        getJob(jobId) {
            return this.#get(`/api/jobs/${part(jobId)}`);
        }

        cancelJob(jobId) {
            return this.#post(`/api/jobs/${part(jobId)}/cancel`);
        }

        // Data, checkpoints and figures

        /** Checkpoints of a run, else of the current or the last one; best by `rankBy`. */
        checkpoints(trainingDir, rankBy) {
            return this.#get('/api/checkpoints', { training_dir: trainingDir, rank_by: rankBy });
        }

        datasetInfo() {
            return this.#get('/api/dataset/info');
        }

        /** Documents with their tokens, and the first blocks as they would be trained on. */
        previewDataset(name, options = {}) {
            return this.#get(`/api/datasets/${part(name)}/preview`, options);
        }

        /** Start a job that makes a dataset of questions and answers with the loaded model. */
        makeQuestions(dataset, name, options = {}) {
            return this.#post('/api/dataset/questions', { dataset, name, ...options });
        }

        // The next six start a job. Their options are the fields of the request.

        /** Every file of a dataset with its tokens and language, and what cannot be used. */
        inspectDataset(name, options = {}) {
            return this.#post(`/api/datasets/${part(name)}/inspect`, options);
        }

        /** Totals, lengths in tokens, languages, duplicates. */
        datasetStats(name, options = {}) {
            return this.#post(`/api/datasets/${part(name)}/stats`, options);
        }

        findDuplicates(name, options = {}) {
            return this.#post(`/api/datasets/${part(name)}/dedup`, options);
        }

        /** How a run would split it, and what both sides share. */
        splitDataset(name, options = {}) {
            return this.#post(`/api/datasets/${part(name)}/split`, options);
        }

        /** Make a cleaned copy, `<name>-prepared`. */
        prepareDataset(name, options = {}) {
            return this.#post(`/api/datasets/${part(name)}/prepare`, options);
        }

        /** Undo removals of a prepared dataset, given by their ids, or `'all'`. */
        restoreDataset(name, removals) {
            return this.#post(`/api/datasets/${part(name)}/restore`, { removals });
        }

        /** What a prepared dataset was made of, and what was left out. */
        preparation(name, options = {}) {
            return this.#get(`/api/datasets/${part(name)}/preparation`, options);
        }

        /** Start a job that measures a model, a run or a checkpoint. */
        evaluate(model, options = {}) {
            return this.#post('/api/evaluate', { model, ...options });
        }

        dashboardData(trainingDir) {
            return this.#get('/api/dashboard/data', { training_dir: trainingDir });
        }

        dashboardRealtime() {
            return this.#get('/api/dashboard/realtime');
        }

        /** Put a file into a dataset; `content` is a Blob, a File, bytes or text. */
        uploadFile(dataset, file, content) {
            const body = { method: 'PUT', body: content, headers: { 'Content-Type': 'application/octet-stream' } };
            return this.#answer(`/api/datasets/${part(dataset)}/files/${part(file)}`, body);
        }

        /** For good. */
        deleteFile(dataset, file) {
            return this.#delete(`/api/datasets/${part(dataset)}/files/${part(file)}`);
        }

        // The server

        health() {
            return this.#get('/api/health');
        }

        /** Folders and files below a folder of the workspace. */
        browse(path) {
            return this.#get('/api/filesystem/browse', { path });
        }

        async #get(path, params = {}) {
            const given = Object.entries(params).filter(([, value]) => value !== undefined);
            const query = given.length ? `?${new URLSearchParams(given)}` : '';
            return this.#reply(await this.#send(path + query, {}));
        }

        async #post(path, body) {
            return this.#reply(await this.#send(path, postOf(body)));
        }

        #put(path, body) {
            return this.#answer(path, { ...postOf(body), method: 'PUT' });
        }

        #delete(path) {
            return this.#answer(path, { method: 'DELETE' });
        }

        async #answer(path, init) {
            return this.#reply(await this.#send(path, init));
        }

        /**
         * @param {string} path
         * @param {any} init as fetch takes it
         */
        #send(path, { headers = {}, ...init }) {
            return fetch(this.baseUrl + path, { ...init, headers: { ...this.headers, ...headers } });
        }

        async #reply(response) {
            const reply = await response.json();
            if (this.throwErrors && !reply.success) throw new ForgeLLMError(reply);
            return reply;
        }
    }

    /** A name as one part of a path. */
    function part(name) {
        return encodeURIComponent(name);
    }

    function checked(reply) {
        if (!reply.success) throw new ForgeLLMError(reply);
        return reply;
    }

    function updateOf(trainingId, line, maxIterations, status) {
        return {
            event: 'training_update',
            training_id: trainingId,
            ...line,
            max_iterations: maxIterations,
            progress_percentage: Math.round((10000 * line.iteration) / maxIterations) / 100,
            eta_minutes: status?.eta_minutes ?? null,
            processes: status?.processes ?? [],
        };
    }

    /** The last event of a run that has ended. */
    function endOf(trainingId, { run, state, performance, best_checkpoints }) {
        const { phase, iteration, error } = state;
        const common = { training_id: trainingId, output_dir: run.output_dir, phase };
        if (phase === 'completed' || phase === 'stopped') {
            return {
                event: 'training_complete',
                success: true,
                ...common,
                stopped: phase === 'stopped',
                stopped_early: state.stopped_early,
                final_iteration: iteration,
                final_loss: performance.final_loss,
                training_time_minutes: state.training_seconds / 60,
                best_checkpoints,
            };
        }
        // A trainer that vanished has ended when the server has written down what became of it.
        const hasFailed = (phase === 'failed' || phase === 'interrupted') && error;
        return hasFailed ? { event: 'training_error', ...error, ...common, iteration } : null;
    }

    function postOf(body) {
        if (body === undefined) return { method: 'POST' };
        return {
            method: 'POST',
            headers: { 'Content-Type': 'application/json' },
            body: JSON.stringify(body),
        };
    }

    /** The JSON of each `data:` line of a stream of server-sent events. */
    async function* itemsOf(stream) {
        const reader = stream.getReader();
        const decoder = new TextDecoder();
        let text = '';
        try {
            for (;;) {
                const { value, done } = await reader.read();
                if (done) return;
                const lines = (text + decoder.decode(value, { stream: true })).split('\n');
                text = lines.pop() ?? '';
                for (const line of lines) {
                    if (line.startsWith('data:')) yield JSON.parse(line.slice(5));
                }
            }
        } finally {
            await reader.cancel(); // the server stops when nobody reads
        }
    }

    globalThis.ForgeLLMClient = ForgeLLMClient;
    globalThis.ForgeLLMError = ForgeLLMError;
    if (typeof module === 'object' && module.exports) {
        module.exports = { ForgeLLMClient, ForgeLLMError };
    }
})();
