// Language and colours: as the browser asks for, until somebody chooses.
import { codeNamed } from './codes';
import { words, type Language, type Word } from './words';

class Look {
  language = $state<Language>((localStorage.getItem('language') as Language | null) ?? (navigator.language.startsWith('zh') ? 'zh' : 'en'));
  theme = $state<'light' | 'dark'>((localStorage.getItem('theme') as 'light' | 'dark' | null) ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'));

  apply(): void {
    document.documentElement.dataset['theme'] = this.theme;
    document.documentElement.lang = this.language === 'zh' ? 'zh-CN' : 'en';
  }

  toggleTheme(): void {
    this.theme = this.theme === 'dark' ? 'light' : 'dark';
    localStorage.setItem('theme', this.theme);
    this.apply();
  }

  toggleLanguage(): void {
    this.language = this.language === 'en' ? 'zh' : 'en';
    localStorage.setItem('language', this.language);
    this.apply();
  }
}

export const look = new Look();

/** Says a word in the language of the page. */
export function t(word: Word): string {
  return words[look.language][word];
}

/** Says how a command went: the dispatcher's own words are English. */
export function said(reply: { ok: boolean; message?: string; code?: string }): string {
  if (look.language === 'en' && reply.message) return reply.message.charAt(0).toUpperCase() + reply.message.slice(1);
  return reply.ok ? t('done') : `${t('error')}${reply.code ? ` (${named(reply.code)})` : ''}`;
}

/** Says a name that the protocol uses, where there is a word for it. */
export function named(name: string): string {
  const known = words[look.language] as Record<string, string>;
  return codeNamed(name, look.language) ?? known[name] ?? name.replaceAll('_', ' ');
}
