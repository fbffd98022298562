// Every word of the page, in its two languages.

const en = {
  overview: 'Overview', workers: 'Workers', jobs: 'Jobs', playground: 'Playground', alerts: 'Alerts', models: 'Models',
  connecting: 'Connecting', online: 'Online', offline: 'Offline', draining: 'Draining', live: 'Live', stale: 'Stale',
  no_broker: 'The broker cannot be reached. The page tries again by itself.',
  no_dispatcher: 'No dispatcher is online. Figures are the last ones heard.',
  no_gateway: 'The gateway does not answer. The page tries again by itself.',
  heard: 'Heard', ago: 'ago', loading: 'Loading', dark: 'Dark', light: 'Light', language: '中文', menu: 'Pages', skip: 'Skip to content',
  open_demo: 'This machine only, no login', version: 'Version',
  log_in: 'Log in', log_out: 'Log out', login_first: 'Log in to see this fleet.', user_name: 'Name', password: 'Password', wrong_password: 'No such name, or not its password.', too_many_attempts: 'Too many wrong passwords. Wait', viewer: 'viewer', operator: 'operator', admin: 'admin', not_allowed: 'Your role may not see or do this',
  workers_online: 'Workers online', busy: 'busy', of: 'of', hot: 'hot', jobs_per_s: 'Jobs per second', now: 'now', last_10s: 'over the last 10 s',
  latency: 'Answer time', median: 'median', p95: '95 %', queue: 'Waiting', running: 'on boards', in_cloud: 'in cloud',
  on_edge: 'On the edge', from_cache: 'cached', from_library: 'from the library', cost: 'Cost', today: 'today', since_start: 'since the start', budget: 'of', escalated_why: 'Why jobs left their board',
  running_state: 'Running', finished: 'Finished jobs', ok: 'Answered', failed: 'Failed', expired: 'Expired', cancelled: 'Cancelled', rejected: 'Rejected', queued: 'Queued', assigned: 'Assigned', escalated: 'In the cloud',
  cloud_chain: 'Cloud endpoints', closed: 'in use', open: 'left alone', half_open: 'being tried', no_cloud: 'No cloud is set up: boards answer alone.',
  load: 'Load', all_well: 'All is well', step: 'Step', refused: 'refused', history: 'Last', hour: 'hour', day: 'day', throughput: 'Jobs per second', who_answered: 'Who answered, per minute', boards: 'Boards', cloud: 'Cloud', cache: 'Cache', library: 'Library',
  nothing_yet: 'Nothing yet', no_workers: 'No worker has said a word yet. Start one: edge-worker run', none_fits: 'No worker fits.', search: 'Search', all: 'All', shown: 'shown',
  worker: 'Worker', status: 'Status', weight: 'Weight', compute: 'compute', bandwidth: 'bandwidth', load_col: 'Jobs', speed_5min: 'Tokens a second over 5 minutes', on_average: 'on average', at_most: 'at most', temperature: 'Temp.', speed: 'Tokens/s', tokens_s: 'tokens/s', measured: 'Measured', board: 'Board', model: 'Model', software: 'Software', seen: 'Last heard', throttled: 'throttled', left_alone: 'left alone after failures', cpu: 'CPU', memory: 'Memory', cores: 'cores', context: 'context', labels: 'Labels', slots: 'slots', prompt_speed: 'Reads', answer_speed: 'writes', link: 'link',
  drain: 'Drain', resume: 'Resume', reload: 'Reload model', sure_drain: 'No more jobs for this worker until it is resumed?', sure_resume: 'Give this worker jobs again?', sure_reload: 'Let this worker load its model again?', yes: 'Yes', no: 'No', done: 'Done', unknown_worker: 'This worker is not known (any more).', its_jobs: 'Its latest jobs', back: 'Back',
  job: 'Job', device: 'Device', received: 'Received', took: 'Took', by: 'By', reason: 'Reason', attempts: 'Attempts', priority: 'Priority', prompt: 'Prompt', characters: 'characters', deadline: 'Deadline', refresh: 'Refresh', dead: 'Dead letters', retry: 'Retry', cancel: 'Cancel', dead_letter: 'Dead letter', no_jobs: 'No jobs here.', id_part: 'Part of the id', tenant: 'Tenant', more_filters: 'More filters', from_time: 'From', until_time: 'Until', clear_filters: 'Clear filters', newest: 'Newest', newer: 'Newer', older: 'Older', pages: 'Pages of jobs', pages_below: 'Pages of jobs, below', jobs_shown: 'on this page', new_jobs: 'new', looking: 'Looking', looked_back: 'Looked back to', no_job_fits: 'No job fits.', no_jobs_yet: 'No job yet. Ask one: fleet ask "..."', no_more_jobs: 'Nothing further in this direction.', very_many: 'There are very many jobs; those that fit were looked for back to', look_further: 'Look further', no_answer: 'The dispatcher did not answer.', try_again: 'Try again', wrong_filter: 'This can be no filter', what_ids_are: 'Ids have up to 36 letters, digits, - and _.', all_its_jobs: 'All its jobs', unknown_job: 'This job is not known (any more).', answer: 'Answer', confidence: 'Confidence', tokens: 'Tokens', in_words: 'in', out_words: 'out', timeline: 'Timeline', first_token: 'First word', result: 'Result', code: 'Code', degraded: 'second best', part_of: 'Part of', parts: 'Parts', waited: 'waited',
  ask_title: 'Ask the fleet', question: 'Question', ask: 'Ask', stop: 'Stop', asking: 'Asking', both: 'Boards and cloud side by side', edge_side: 'Boards only', cloud_side: 'Cloud', auto_side: 'The fleet decides', answered_by: 'Answered by', why: 'Why', asked_nothing: 'Ask something short: a command, a reading, a label.', took_back: 'a board’s words were replaced', max_tokens: 'Longest answer', example_1: 'Turn off the lamp in the hall.', example_2: 'Is 71 C too hot for a CPU?', example_3: 'Classify as leak, smoke or fine: there is water below the pump', example_4: 'Explain in detail how a heat pump works in winter.',
  firing: 'Firing', looked_after: 'Looked after', look_after: 'I look after it', by_whom: 'Looked after by', fired_before: 'What fired before', none_before: 'Nothing yet.', alert: 'Alert', fired_at: 'Fired', lasted: 'Lasted', no_alerts: 'Nothing is wrong.', since: 'since', info: 'Note', warning: 'Warning', critical: 'Critical',
  in_the_field: 'In the field', workers_with: 'workers', not_found: 'There is no such page.', error: 'That did not work',
};

export type Word = keyof typeof en;

const zh: Record<Word, string> = {
  overview: '总览', workers: '边缘节点', jobs: '任务', playground: '试一试', alerts: '告警', models: '模型',
  connecting: '连接中', online: '在线', offline: '离线', draining: '排空中', live: '实时', stale: '数据过期',
  no_broker: '无法连接消息代理，页面会自动重试。',
  no_dispatcher: '没有在线的调度器，显示的是最后收到的数据。',
  no_gateway: '网关没有响应，页面会自动重试。',
  heard: '收到于', ago: '前', loading: '加载中', dark: '深色', light: '浅色', language: 'English', menu: '页面', skip: '跳到正文',
  open_demo: '仅限本机，无需登录', version: '版本',
  log_in: '登录', log_out: '退出登录', login_first: '请登录以查看此集群。', user_name: '用户名', password: '密码', wrong_password: '用户名或密码不正确。', too_many_attempts: '密码错误次数过多，请等待', viewer: '查看者', operator: '操作员', admin: '管理员', not_allowed: '您的角色无权查看或执行此操作',
  workers_online: '在线节点', busy: '忙碌', of: '/', hot: '过热', jobs_per_s: '每秒任务数', now: '当前', last_10s: '最近 10 秒',
  latency: '响应时间', median: '中位数', p95: '95 %', queue: '等待中', running: '节点', in_cloud: '云端',
  on_edge: '边缘回答占比', from_cache: '缓存', from_library: '来自离线库', cost: '费用', today: '今天', since_start: '启动以来', budget: '预算', escalated_why: '任务上云的原因',
  running_state: '处理中', finished: '已完成任务', ok: '已回答', failed: '失败', expired: '超时', cancelled: '已取消', rejected: '被拒绝', queued: '排队中', assigned: '已分配', escalated: '云端处理',
  cloud_chain: '云端接口', closed: '使用中', open: '暂停使用', half_open: '试探中', no_cloud: '未配置云端：全部由节点回答。',
  load: '负载', all_well: '一切正常', step: '级别', refused: '已拒绝', history: '最近', hour: '1 小时', day: '1 天', throughput: '每秒任务数', who_answered: '每分钟由谁回答', boards: '节点', cloud: '云端', cache: '缓存', library: '离线库',
  nothing_yet: '暂无数据', no_workers: '还没有节点上线。启动一个：edge-worker run', none_fits: '没有符合条件的节点。', search: '搜索', all: '全部', shown: '个显示',
  worker: '节点', status: '状态', weight: '权重', compute: '算力', bandwidth: '带宽', load_col: '任务', speed_5min: '近 5 分钟每秒词元', on_average: '平均', at_most: '最高', temperature: '温度', speed: '词元/秒', tokens_s: '词元/秒', measured: '实测', board: '板卡', model: '模型', software: '软件', seen: '最后通信', throttled: '已降频', left_alone: '多次失败，暂不使用', cpu: 'CPU', memory: '内存', cores: '核', context: '上下文', labels: '标签', slots: '槽位', prompt_speed: '读取', answer_speed: '生成', link: '链路',
  drain: '排空', resume: '恢复', reload: '重新加载模型', sure_drain: '在恢复之前不再给该节点分配任务？', sure_resume: '重新给该节点分配任务？', sure_reload: '让该节点重新加载模型？', yes: '确定', no: '取消', done: '完成', unknown_worker: '没有这个节点（或已被移除）。', its_jobs: '最近的任务', back: '返回',
  job: '任务', device: '设备', received: '收到时间', took: '用时', by: '回答者', reason: '原因', attempts: '尝试次数', priority: '优先级', prompt: '提示', characters: '个字符', deadline: '截止时间', refresh: '刷新', dead: '死信', retry: '重试', cancel: '取消任务', dead_letter: '死信', no_jobs: '没有任务。', id_part: '编号的一部分', tenant: '租户', more_filters: '更多筛选', from_time: '从', until_time: '到', clear_filters: '清除筛选', newest: '最新', newer: '较新', older: '较早', pages: '任务分页', pages_below: '任务分页（下方）', jobs_shown: '个任务在本页', new_jobs: '个新任务', looking: '查找中', looked_back: '已查找到', no_job_fits: '没有符合条件的任务。', no_jobs_yet: '还没有任务。提交一个：fleet ask "..."', no_more_jobs: '这个方向没有更多任务了。', very_many: '任务非常多；已查找到', look_further: '继续查找', no_answer: '调度器没有回答。', try_again: '重试', wrong_filter: '无效的筛选条件', what_ids_are: '编号最多 36 个字符：字母、数字、- 和 _。', all_its_jobs: '它的全部任务', unknown_job: '没有这个任务（或已被清除）。', answer: '回答', confidence: '置信度', tokens: '词元', in_words: '输入', out_words: '输出', timeline: '时间线', first_token: '首个词', result: '结果', code: '代码', degraded: '次优结果', part_of: '所属任务', parts: '分段', waited: '等待',
  ask_title: '向集群提问', question: '问题', ask: '提问', stop: '停止', asking: '提问中', both: '边缘与云端对比', edge_side: '仅边缘', cloud_side: '云端', auto_side: '由集群决定', answered_by: '回答者', why: '原因', asked_nothing: '问些简短的：命令、读数、分类。', took_back: '节点的回答已被替换', max_tokens: '最长回答', example_1: '关掉走廊的灯。', example_2: 'CPU 71 度算太热吗？', example_3: '分类为 leak、smoke 或 fine：泵下面有水', example_4: '详细解释热泵在冬天如何工作。',
  firing: '告警中', looked_after: '处理中的告警', look_after: '由我处理', by_whom: '处理人', fired_before: '历史告警', none_before: '暂无记录。', alert: '告警', fired_at: '触发时间', lasted: '持续', no_alerts: '没有异常。', since: '自', info: '提示', warning: '警告', critical: '严重',
  in_the_field: '现场版本', workers_with: '个节点', not_found: '没有这个页面。', error: '操作失败',
};

export type Language = 'en' | 'zh';
export const words: Record<Language, Record<Word, string>> = { en, zh };
